"""Policies as rows of parameters: which positions are committed in a step, and which revised.

A policy is data. Every step does the same for every slot: score the candidates by the
*distribution* at each position, rank them, commit the longest run of ranks that passes the
gates, and at least as many as the step budget asks for; only then draw the tokens
(`commit.py`). Ranking by the drawn token's probability instead ("sample, then choose") sharpens
the text even with a perfect denoiser (arXiv 2510.04525). The positions filled before may then
be revised: edited, or masked again (`revise.py`).

| preset        | ranks by         | commits in a step                       | arXiv      |
|---------------|------------------|-----------------------------------------|------------|
| ancestral     | hitting time     | what was hit (without a budget: one)    | 2406.07524 |
| first_hitting | hitting time     | one                                     | 2409.02908 |
| random        | hitting time     | an equal share of the masked positions  | 2502.09992 |
| confidence    | top probability  | an equal share                          | 2502.09992 |
| margin        | top-1 less top-2 | an equal share                          | 2502.06768 |
| entropy       | low entropy      | an equal share                          | 2508.15487 |
| threshold     | top probability  | all above `threshold`, at least one     | 2505.22618 |
| factor        | top probability  | n while (n + 1)(1 - its n-th confidence)| 2505.22618 |
|               |                  | is below `factor`, at least one         |            |
| entropy_bound | low entropy      | while summed entropy, less its maximum, | 2505.24857 |
|               |                  | is within `entropy_bound`               |            |

| pos_bias      | low entropy, less| like entropy_bound                      | 2512.22737 |
|               | `position_bias` a|                                         |            |
|               | position further |                                         |            |
| stability     | top probability  | like threshold, of those whose top token| 2511.05664 |
|               |                  | was the same in the last `stable` steps |            |
| credit        | top probability, | like threshold                          | 2510.06133 |
|               | raised where it  |                                         |            |
|               | was high before  |                                         |            |

| preset        | commits like | and revises                                     | arXiv      |
|---------------|--------------|-------------------------------------------------|------------|
| joint         | threshold    | edits: what is surely another token             | 2602.08676 |
| verify        | threshold    | masks again what a look at the full block doubts| 2505.23842 |
| wino          | threshold, 20| masks again, in each step, what the rest of the | 2507.18578 |
|               | at most      | canvas doubts (leave-one-out, by shadows)       |            |
| p2            | confidence   | keeps the best of all positions, filled or not  | 2502.03540 |
| remdm         | ancestral    | masks again by coins, at most a share `remask`  | 2503.00307 |
| remdm_rescale | ancestral    | the same, a share of the most that may be       | 2503.00307 |
| remdm_loop    | ancestral    | the same, in a stretch where time stands still  | 2503.00307 |
| remdm_confi-  | ancestral    | as rescale, and likelier what was committed     | 2503.00307 |
|  dence        |              | with little confidence                          |            |

Torch-free, so that the server and the command line can name and check policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

INFINITY = float("inf")
MAX_ROUNDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One preset: the weights of the score, the gates and the revisions; what is unset is off.

    Attributes:
        confidence, margin, entropy, hitting_time: weights of log p_max, p_max - p_second, -H
            (nats) and the hitting time in the score.
        position_bias: taken from the score for every position between it and the leftmost mask.
        credit: alpha; logits gain alpha log(1 + C) of a token that was the most likely one in
            earlier steps, where C decays (see `history.earn_credit`). Confidences and
            log-probabilities are then those of the raised logits.
        threshold: commit while the top probability is greater than this.
        factor: commit the n most confident while (n + 1)(1 - p) of the n-th is below this; at 1
            greedy parallel commits equal greedy ones one by one (Fast-dLLM, theorem 1).
        entropy_bound: commit while the summed entropy of the chosen, less its maximum, is at
            most this many nats.
        max_per_step: the gates let at most this many positions pass in a step; 0 is no limit. Nor
            do they let more pass than the share `max_share` of the block's masked positions,
            rounded down, but `max_least` in any case.
        stable: commit only where the most likely token was the same in this many steps in a
            row, this one included.
        single: one commit a step, whatever the budget.
        timed: commit the positions whose hitting time has come, and only those.
        adaptive: the gates decide how many; otherwise each step commits an equal share.
        edit_threshold: give a filled position its most likely token when that is another one
            and its probability is greater than this.
        edit_margin: and at least this many times that of the token it replaces.
        doubt: mask a position of a full block again when the token that it holds has less than
            this probability.
        shadowed: look at a filled position through a shadow, a mask at its place that sees all but
            its token (WINO); then any model will do. What is doubted is masked again in every
            step that commits several, the least likely first, and one fewer than the step before
            committed, so that the block fills.
        planned: keep the best of all positions by their probability, as many as the step budget
            says; the others are masked again. Rank by confidence.
        remask: eta, the share of filled positions that a step masks again at most, by coins;
            `timed` commits are then tossed step by step so that as many stay filled.
        remask_rescaled: eta is a share of the largest share that the schedule allows.
        remask_confidence: weight of minus the commit's probability in who is masked again.
        loop_start, loop_end, loop_alpha: remask only between these times, 1 > start > end > 0,
            at a filled share that stays alpha; 1 is no loop.
        max_rounds: how often a full block is looked at again, in 0..MAX_ROUNDS.
    """

    confidence: float = 0.0
    margin: float = 0.0
    entropy: float = 0.0
    hitting_time: float = 0.0
    position_bias: float = 0.0
    credit: float = 0.0
    threshold: float = -INFINITY
    factor: float = INFINITY
    entropy_bound: float = INFINITY
    max_per_step: int = 0
    max_share: float = 1.0
    max_least: int = 0
    stable: int = 0
    single: bool = False
    timed: bool = False
    adaptive: bool = False
    edit_threshold: float = INFINITY
    edit_margin: float = 1.0
    doubt: float = 0.0
    shadowed: bool = False
    planned: bool = False
    remask: float = 0.0
    remask_rescaled: bool = False
    remask_confidence: float = 0.0
    loop_start: float = 0.0
    loop_end: float = 0.0
    loop_alpha: float = 1.0
    max_rounds: int = 0

    @property
    def is_blind(self) -> bool:
        """Whether it ranks by hitting time alone and never looks at a masked position's
        distribution."""
        return not (self.confidence or self.margin or self.entropy or self.adaptive)

    @property
    def looks_back(self) -> bool:
        """Whether it looks at the distribution of filled positions."""
        return self.edit_threshold < INFINITY or self.doubt > 0.0 or self.planned

    @property
    def casts_shadows(self) -> bool:
        """Whether it looks at filled positions through shadows."""
        return self.shadowed and self.looks_back

    @property
    def needs_edit_training(self) -> bool:
        """Whether it asks the model about tokens that the model sees, which it predicts only if it
        was trained to."""
        return self.looks_back and not self.shadowed

    @property
    def tosses(self) -> bool:
        """Whether coins of every step decide what is committed and what is masked again."""
        return self.remask > 0.0

    @property
    def revises(self) -> bool:
        """Whether a filled position may change, so that nothing settles in an open block."""
        return self.looks_back or self.tosses


PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        "ancestral": Policy(hitting_time=1.0, timed=True),
        "first_hitting": Policy(hitting_time=1.0, single=True),
        "random": Policy(hitting_time=1.0),
        "confidence": Policy(confidence=1.0),
        "margin": Policy(margin=1.0),
        "entropy": Policy(entropy=1.0),
        "threshold": Policy(confidence=1.0, threshold=0.9, adaptive=True),
        "factor": Policy(confidence=1.0, factor=1.0, adaptive=True),
        "entropy_bound": Policy(entropy=1.0, entropy_bound=0.2, adaptive=True),
        "pos_bias": Policy(entropy=1.0, position_bias=0.05, entropy_bound=0.2, adaptive=True),
        "stability": Policy(confidence=1.0, threshold=0.7, stable=2, adaptive=True),
        "credit": Policy(confidence=1.0, threshold=0.9, credit=0.7, adaptive=True),
        "joint": Policy(
            confidence=1.0, threshold=0.7, adaptive=True, edit_threshold=0.5, max_rounds=16
        ),
        "verify": Policy(confidence=1.0, threshold=0.6, adaptive=True, doubt=0.1, max_rounds=4),
        "wino": Policy(
            confidence=1.0,
            threshold=0.6,
            adaptive=True,
            max_per_step=20,
            max_share=0.7,
            max_least=5,
            doubt=0.9,
            shadowed=True,
        ),
        "p2": Policy(confidence=1.0, planned=True),
        "remdm": Policy(hitting_time=1.0, timed=True, remask=0.008),
        "remdm_rescale": Policy(hitting_time=1.0, timed=True, remask=0.015, remask_rescaled=True),
        "remdm_loop": Policy(
            hitting_time=1.0,
            timed=True,
            remask=0.02,
            loop_start=0.55,
            loop_end=0.05,
            loop_alpha=0.9,
        ),
        "remdm_confidence": Policy(
            hitting_time=1.0, timed=True, remask=0.015, remask_rescaled=True, remask_confidence=1.0
        ),
    }
)
