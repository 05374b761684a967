"""Which positions of a draft are masked again: those that the model doubts, or as the seed has it;
and those that cannot stand in a language that the text must be of.

A look at a draft leaves an eighth of it out at a time, every eighth position, and asks how likely
its tokens are given all others: eight canvases in packed forwards, whatever the draft's length.
It is taken once, when the request has its slot, and of this request alone, so that it is the same
in any company.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusiongpt.engine.draft import DraftPlan, OpenedDraft
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.score import Corrupted, token_log_probs, within_budget

NUM_LOOKS = 8
_LEAST_WEIGHT = 1e-6  # what the model is least sure of is still better kept than not


def open_draft(
    model: LoadedModel, head: Head, request: Request, draft: DraftPlan, token_budget: int
) -> OpenedDraft:
    """Choose the positions of a request's draft that are masked."""
    length = len(draft.token_ids)
    confidence, num_looks = torch.ones(length), 0
    if draft.needs_look:
        log_prob = look_at(model, head, request, draft, token_budget)
        confidence, num_looks = log_prob.exp(), min(NUM_LOOKS, length)
        order = log_prob.argsort(stable=True)
    else:
        positions = torch.arange(length)
        seed = torch.tensor(request.params.seed or 0)
        order = uniform(counter_keys(seed, Purpose.ORDER, positions)).argsort(stable=True)
    kept = sorted(order[draft.num_masked :].tolist())
    if (language := request.languages[0]) is not None:
        kept = _standing(language, request.params.max_tokens, draft, kept, confidence.tolist())
    return OpenedDraft(
        token_ids=draft.token_ids,
        masked=tuple(sorted({*range(length)} - {*kept})),
        confidence=tuple(confidence.tolist()),
        num_looks=num_looks,
    )


def _standing(
    language: Language,
    length: int,
    draft: DraftPlan,
    kept: Sequence[int],
    confidence: Sequence[float],
) -> list[int]:
    """Of positions that would be kept those whose tokens a text of the language has together, of
    what the model is surest of as much as can be."""
    assert language.automaton is not None
    tokens = {each: (draft.token_ids[each], max(confidence[each], _LEAST_WEIGHT)) for each in kept}
    return language.automaton.keep_most(tokens, length)


@torch.inference_mode()
def look_at(
    model: LoadedModel, head: Head, request: Request, draft: DraftPlan, token_budget: int
) -> Tensor:
    """(n,) log-probability of each token of a draft, on the host; see the module."""
    start, stop = len(request.prompt), request.blocks.window(request.blocks.end)[1]
    length = len(draft.token_ids)
    ids = torch.full((stop,), model.mask_token_id, device=model.device)
    given = torch.tensor([*request.prompt, *draft.token_ids], device=model.device)
    ids[: len(given)] = given
    looks = []
    for first in range(min(NUM_LOOKS, length)):
        left_out = torch.arange(start + first, start + length, NUM_LOOKS, device=model.device)
        canvas = ids.clone()
        canvas[left_out] = model.mask_token_id
        looks.append(Corrupted(canvas, left_out, 1.0, first))
    log_prob = torch.zeros(length)
    for batch in within_budget(looks, token_budget):
        found = token_log_probs(model, head, ids, batch, request.blocks.causal_block)
        for each, values in zip(batch, found, strict=True):
            log_prob[each.draw :: NUM_LOOKS] = values.cpu()
    return log_prob
