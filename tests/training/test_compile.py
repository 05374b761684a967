"""A compiled step of training: an eager one's losses and gradients."""

import shutil

import pytest
import torch


def draw_batch(masked_share):
    tokens, segments = torch.randint(6, 200, (2, 16)), torch.ones(2, 16, dtype=torch.long)
    masked = torch.rand(2, 16) < masked_share
    weights = torch.rand(2, 16) + 0.5
    maskable = torch.ones(2, 16, dtype=torch.bool)
    return {
        "tokens": tokens,
        "segments": segments,
        "maskable": maskable,
        "masked": masked,
        "weights": weights,
    }


def losses_and_gradients(denoiser, batches):
    """Of one plain step of descent after another, so that the second sees what the first did."""
    found = []
    for batch in batches:
        loss = denoiser(**batch) / batch["maskable"].sum()
        gradients = torch.autograd.grad(loss, list(denoiser.parameters()))
        found += [loss.detach(), *gradients]
        with torch.no_grad():
            for parameter, gradient in zip(denoiser.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
def test_compiled_steps_give_the_losses_and_gradients_of_eager_ones(make_denoiser):
    torch.manual_seed(0)
    batches = [draw_batch(0.5), draw_batch(0.3)]  # the head runs on more rows, then on fewer
    eager, compiled = (make_denoiser(num_hidden_layers=1).train() for _ in range(2))
    compiled.compile_layers()
    expected = losses_and_gradients(eager, batches)
    for ours, theirs in zip(losses_and_gradients(compiled, batches), expected, strict=True):
        largest = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * largest)
