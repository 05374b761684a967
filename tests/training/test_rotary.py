"""Rotary positions piece by piece: those of transformers, and their gradients."""

import pytest
import torch
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from diffusiongpt.training import rotary
from diffusiongpt.training.rotary import rotate


def tables(rows, length, size, dtype):
    """Cosines and sines (`rows`, `length`, `size`) of random angles, both halves alike."""
    angles = torch.rand(rows, length, size // 2) * 6
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def stock_rotation(qkv, cos, sin):
    query, key, value = (x.transpose(1, 2) for x in qkv.unbind(2))
    return [*apply_rotary_pos_emb(query, key, cos, sin), value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_of_angles", [1, 3])
@pytest.mark.parametrize("piece", [1, 1 << 9, 1 << 17])
def test_pieces_give_the_rotation_of_transformers(monkeypatch, dtype, rows_of_angles, piece):
    monkeypatch.setattr(rotary, "PIECE", piece)
    torch.manual_seed(0)
    qkv = torch.randn(3, 20, 3, 2, 8, dtype=dtype, requires_grad=True)
    angles = tables(rows_of_angles, 20, 8, dtype)
    found, expected = rotate(qkv, *angles), stock_rotation(qkv, *angles)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Gradients are rounded once, where transformers' are rounded for each of their two parts.
    grads = torch.randn(3, 3, 2, 20, 8, dtype=dtype).unbind()
    wide = qkv.detach().float().requires_grad_()
    exact = stock_rotation(wide, *(angle.float() for angle in angles))
    (theirs,) = torch.autograd.grad(exact, wide, [grad.float() for grad in grads])
    (ours,) = torch.autograd.grad(found, qkv, grads)
    torch.testing.assert_close(ours, theirs.to(dtype))


def test_gradients_of_a_rotation_are_those_of_differences():
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    cos, sin = tables(1, 5, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), [qkv])
