"""Commit policies as rows of parameters: which masked positions are committed in a step.

A policy is data. Every step does the same for every slot (see `commit.py`):
score the candidates by the *distribution* at each position, rank them, commit the longest
run of ranks that passes the gates, and at least as many as the step budget asks for; only
then draw the tokens. Ranking by the drawn token's probability instead ("sample, then choose")
sharpens the text even with a perfect denoiser (arXiv 2510.04525).

| preset        | ranks by         | commits in a step                       | arXiv      |
|---------------|------------------|-----------------------------------------|------------|
| ancestral     | hitting time     | what was hit (without a budget: one)    | 2406.07524 |
| random        | hitting time     | an equal share of the masked positions  | 2502.09992 |
| confidence    | top probability  | an equal share                          | 2502.09992 |
| margin        | top-1 less top-2 | an equal share                          | 2502.06768 |
| entropy       | low entropy      | an equal share                          | 2508.15487 |
| threshold     | top probability  | all above `threshold`, at least one     | 2505.22618 |
| factor        | top probability  | n while (n + 1)(1 - its n-th confidence)| 2505.22618 |
|               |                  | is below `factor`, at least one         |            |
| entropy_bound | low entropy      | while summed entropy, less its maximum, | 2505.24857 |
|               |                  | is within `entropy_bound`               |            |

Torch-free, so that the server and the command line can name and check policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

INFINITY = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One preset: the weights of the score and the gates, an unset gate being infinite.

    Attributes:
        confidence, margin, entropy, hitting_time: weights of log p_max, p_max - p_second, -H
            (nats) and the hitting time in the score.
        threshold: commit while the top probability is greater than this.
        factor: commit the n most confident while (n + 1)(1 - p) of the n-th is below this; at 1
            greedy parallel commits equal greedy ones one by one (Fast-dLLM, theorem 1).
        entropy_bound: commit while the summed entropy of the chosen, less its maximum, is at
            most this many nats.
        timed: commit the positions whose hitting time has come, and only those.
        adaptive: the gates decide how many; otherwise each step commits an equal share.
    """

    confidence: float = 0.0
    margin: float = 0.0
    entropy: float = 0.0
    hitting_time: float = 0.0
    threshold: float = -INFINITY
    factor: float = INFINITY
    entropy_bound: float = INFINITY
    timed: bool = False
    adaptive: bool = False


PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        "ancestral": Policy(hitting_time=1.0, timed=True),
        "random": Policy(hitting_time=1.0),
        "confidence": Policy(confidence=1.0),
        "margin": Policy(margin=1.0),
        "entropy": Policy(entropy=1.0),
        "threshold": Policy(confidence=1.0, threshold=0.9, adaptive=True),
        "factor": Policy(confidence=1.0, factor=1.0, adaptive=True),
        "entropy_bound": Policy(entropy=1.0, entropy_bound=0.2, adaptive=True),
    }
)
