"""What the host knows of a batch ahead of its step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongpt.engine.running import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What the host knows of a batch, so that the step need not ask the device.

    Attributes:
        width: positions of the widest block. max_gap: the largest gap.
        any_blind: whether some policy ranks by hitting time alone. any_seeing: whether some
            policy looks at distributions. any_steady, any_credit: whether some policy asks for
            the same top token in several steps; whether some credits it.
        any_tossing, any_revising: whether some policy decides by coins of every step; whether
            some revises what is filled.
        any_random: whether some slot draws with a temperature above 0.
        any_truncated: whether some slot draws with top_p, top_k or min_p.
        num_biased: longest `logit_bias`. num_penalized: longest completion with a penalty.
        num_top: most likely tokens to hand out with each commit, None if nobody asks.
        num_tokens: pad the forward to this many tokens, or 0.
        whole_grid: whether every position of the grid is computed, needed or not, so that nothing
            has to be asked of the device.
    """

    width: int
    max_gap: int
    any_blind: bool
    any_seeing: bool
    any_steady: bool
    any_credit: bool
    any_tossing: bool
    any_revising: bool
    any_random: bool
    any_truncated: bool
    num_tokens: int
    whole_grid: bool = False
    num_biased: int = 0
    num_penalized: int = 0
    num_top: int | None = None


def describe_batch(batch: Sequence[Running], *, num_tokens: int, whole_grid: bool) -> BatchFacts:
    """The facts of the requests that run; see `BatchFacts`."""
    requests = [running.request for running in batch]
    policies = [request.policy for request in requests]
    return BatchFacts(
        width=max(running.block_end - running.block_start for running in batch),
        max_gap=max(request.params.gap or 1 for request in requests),
        any_blind=any(policy.is_blind for policy in policies),
        any_seeing=any(not policy.is_blind or policy.looks_back for policy in policies),
        any_steady=any(policy.stable for policy in policies),
        any_credit=any(policy.credit for policy in policies),
        any_tossing=any(policy.tosses for policy in policies),
        any_revising=any(policy.revises for policy in policies),
        any_random=any(request.params.temperature != 0.0 for request in requests),
        any_truncated=any(
            (request.params.top_p or 1.0) < 1.0 or request.params.top_k or request.params.min_p
            for request in requests
        ),
        num_tokens=num_tokens,
        whole_grid=whole_grid,
        num_biased=max(len(request.params.logit_bias) for request in requests),
        num_penalized=max(
            request.params.max_tokens if request.params.is_penalized else 0 for request in requests
        ),
        num_top=max(
            (each.params.logprobs for each in requests if each.params.logprobs is not None),
            default=None,
        ),
    )
