"""The edit stage against a plain loop, and a toy run in which it learns to correct."""

import itertools
import json

import pytest
import torch

from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.edits import (
    corrupt_visible,
    corruption_at,
    draw_edits,
    windows_of,
)
from diffusiongpt.training.forward import corruption_of, edit_tokens_of
from diffusiongpt.training.noise import draw_corruption
from diffusiongpt.training.run import make_trainer

MASK, DELETE = 4, 5
ORDINARY = torch.arange(6, 60)
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def plain_corruption(row, draws, probability, insertion, deletion):
    """One row by loops over its windows; a position is (masked, weight, seen, target, visible)."""
    tokens, maskable, windows, masked, weights = row
    out = []
    cells = list(zip(windows, tokens, maskable, masked, weights, *draws, strict=True))
    for _, group in itertools.groupby(cells, key=lambda cell: cell[0]):
        group = list(group)
        substitute, replacement, insert, where, inserted, delete, delete_where = zip(
            *(cell[5:] for cell in group), strict=True
        )
        view = []
        for place, (_, token, may, hidden, weight, *_) in enumerate(group):
            seen, visible = token, may and not hidden
            if hidden:
                seen = MASK
            elif visible and substitute[place] < probability:
                seen = int(ORDINARY[int(replacement[place] * len(ORDINARY))])
            view.append([hidden, weight, seen, token, visible])
        seen_positions = [place for place, cell in enumerate(view) if cell[4]]
        if deletion and seen_positions and delete[0] < probability:
            first = max(seen_positions, key=lambda place: delete_where[place])
            last = first
            while last + 1 < len(view) and view[last + 1][4]:
                last += 1
            for place in range(first, last):
                view[place][2] = view[place + 1][2]
            view[last][:3] = True, 1.0, MASK
            view[last][4] = False
        seen_positions = [place for place, cell in enumerate(view) if cell[4]]
        if insertion and seen_positions and insert[0] < probability:
            first = max(seen_positions, key=lambda place: where[place])
            token = int(ORDINARY[int(inserted[first] * len(ORDINARY))])
            view = [*view[:first], [False, 0.0, token, DELETE, True], *view[first:-1]]
        out += view
    return out


def batch(block_length, rows=24, length=24):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(6, 60, (rows, length), generator=generator)
    segments = torch.ones(rows, length, dtype=torch.long)
    segments[:, 8:] = 2
    segments[:, 20:] = 0
    maskable = (torch.rand(rows, length, generator=generator) < 0.85) & (segments > 0)
    maskable[:, :3] = False
    masked, weights = draw_corruption(maskable, block_length or 24, "exact_count", 1, 2, 0, rows)
    return tokens, segments, maskable, masked, weights


@pytest.mark.parametrize("block_length", [None, 4, 8])
@pytest.mark.parametrize(("insertion", "deletion"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_corruption_is_that_of_a_plain_loop(block_length, insertion, deletion):
    tokens, segments, maskable, masked, weights = batch(block_length)
    windows = windows_of(segments, block_length)
    for step in range(5):
        draws = draw_edits(7, step, 0, 24, 24, 24)
        got = corrupt_visible(
            tokens, maskable, windows, masked, weights, draws, 0.6, MASK, ORDINARY,
            DELETE if insertion else None, bool(deletion),
        )  # fmt: skip
        for row in range(24):
            cells = plain_corruption(
                [x[row].tolist() for x in (tokens, maskable, windows, masked, weights)],
                [x[row].tolist() for x in draws],
                0.6,
                insertion,
                deletion,
            )
            expected = zip(*cells, strict=True)
            for value, wanted in zip(got, expected, strict=True):
                assert value[row].tolist() == pytest.approx(list(wanted))


def test_what_may_not_be_masked_is_neither_touched_nor_trained():
    tokens, segments, maskable, masked, weights = batch(None)
    draws = draw_edits(0, 0, 0, 24, 24, 24)
    got = corrupt_visible(
        tokens, maskable, windows_of(segments, None), masked, weights, draws, 1.0, MASK, ORDINARY
    )
    fixed = ~maskable
    assert got.noisy[fixed].equal(tokens[fixed])
    assert not (got.visible & fixed).any()
    assert got.visible.equal(maskable & ~masked)


def test_the_share_of_substitutions_is_the_probability():
    tokens = torch.full((64, 256), 3)  # no ordinary token, so that every replacement is seen
    everything = torch.ones_like(tokens, dtype=torch.bool)
    draws = draw_edits(0, 0, 0, 64, 64, 256)
    got = corrupt_visible(
        tokens, everything, windows_of(tokens, None), ~everything, torch.zeros(64, 256), draws,
        0.1, MASK, ORDINARY,
    )  # fmt: skip
    replaced = got.noisy != tokens
    assert float(replaced.float().mean()) == pytest.approx(0.1, abs=0.01)
    counts = torch.bincount(got.noisy[replaced], minlength=60)
    assert not counts[:6].any()
    assert counts[6:].min() > 10


def test_the_curriculum_is_a_function_of_the_step():
    assert corruption_at(5, 10, None, 0.1, True) is None
    assert corruption_at(79, 100, 0.8, 0.1, True) is None
    assert corruption_at(80, 100, 0.8, 0.1, True) == 0
    assert corruption_at(90, 100, 0.8, 0.1, True) == pytest.approx(0.05)
    assert corruption_at(100, 100, 0.8, 0.1, True) == pytest.approx(0.1)
    assert corruption_at(80, 100, 0.8, 0.1, False) == 0.1
    assert corruption_at(0, 100, 0.0, 0.1, False) == 0.1
    assert corruption_at(100, 100, 1.0, 0.1, True) == 0


def test_special_tokens_are_never_random_replacements(tokenizer):
    ids = edit_tokens_of(tokenizer)
    texts = tokenizer.convert_ids_to_tokens(ids.ordinary.tolist())
    assert len(texts) == len(tokenizer) - 6
    assert not [text for text in texts if text.startswith("<|")]


def test_the_edit_stage_must_know_its_steps(make_config):
    with pytest.raises(ConfigError, match="max_minutes=5"):
        make_config(diffusion={"edit_stage_start": 0.8}, run={"max_minutes": 5.0})
    make_config(
        diffusion={"edit_stage_start": 0.0, "anneal_corruption": False}, run={"max_minutes": 5.0}
    )
    with pytest.raises(ConfigError, match=r"causal, got 0\.5"):
        make_config(diffusion={"edit_stage_start": 0.5, "objective": "causal"})


def test_masks_never_predict_delete_and_visible_positions_may(make_denoiser):
    denoiser = make_denoiser()
    assert DELETE in denoiser.banned.tolist()
    assert DELETE in denoiser.banned_visible.tolist()
    editor = type(denoiser)(denoiser.network, "block", 4, MASK, [0, 2, MASK, DELETE], DELETE)
    assert DELETE in editor.banned.tolist()
    assert DELETE not in editor.banned_visible.tolist()


def share_corrected(trainer):
    """Of the wrong visible tokens, those at which the model ranks the truth above all others."""
    denoiser = trainer.model.eval()
    rows = [trainer.train_dataset[index] for index in range(16)]
    inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    drawn = corruption_of(inputs, trainer.config, trainer.edit_tokens, 10_000, 0, 16)
    wrong = drawn["visible"] & (drawn["noisy"] != drawn["targets"])
    with torch.no_grad():
        hidden = denoiser.hidden(
            inputs["tokens"], inputs["segments"], drawn["masked"], drawn["noisy"]
        )
        said = denoiser.head(hidden[wrong]).argmax(1)
    assert len(said) >= 25
    return float((said == drawn["targets"][wrong]).float().mean())


@pytest.mark.parametrize(("stage", "objective"), [("pretrain", "block"), ("sft", "masked")])
def test_the_edit_stage_learns_to_correct_substitutions(make_config, tmp_path, stage, objective):
    words = ["the", "cat", "dog", "saw", "ran", "home", "to", "a", "big", "red", "ball"]
    texts = [" ".join((words[i % 11 :] + 3 * words)[:24]) for i in range(60)]
    asked = {"role": "user", "content": "go"}
    records = [
        {"text": text, "messages": [asked, {"role": "assistant", "content": text}]}
        for text in texts
    ]
    (tmp_path / "cycle.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    trainer = make_trainer(
        make_config(
            stage=stage,
            model={"hidden_size": 32, "num_hidden_layers": 2},
            data={"data_dir": str(tmp_path), "mix": {"cycle": 1.0}, "max_seq_length": 48},
            diffusion={
                "objective": objective,
                "edit_stage_start": 0.0,
                "anneal_corruption": False,
                "corruption_prob": 0.15,
            },
            run={"max_steps": 220, "learning_rate": 1e-2, "batch_size": 8, "log_steps": 100},
        )
    )
    before = share_corrected(trainer)
    trainer.train()
    assert before < 0.1
    assert share_corrected(trainer) > 0.6
