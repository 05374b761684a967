"""What generated token ids are like: surprise, variety, endings. Pure functions of lists of ids.

A low surprise alone proves nothing: a model that repeats one word has it. So the entropy of the
unigrams and the share of different n-grams stand beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongpt.training.ngram import NgramModel

Ids = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuality:
    """Figures of a set of texts.

    Attributes:
        nats_per_token: surprise under an n-gram. perplexity: exp of it.
        unigram_entropy: nats, averaged over texts. distinct: share of different n-grams by n.
    """

    nats_per_token: float
    unigram_entropy: float
    distinct: dict[int, float]
    texts: int
    tokens: int

    @property
    def perplexity(self) -> float:
        """Generative perplexity."""
        return math.exp(self.nats_per_token)

    def __str__(self) -> str:
        kinds = ", ".join(f"distinct-{n} {share:.3f}" for n, share in self.distinct.items())
        return (
            f"perplexity {self.perplexity:.2f} ({self.nats_per_token:.3f} nats/token), "
            f"unigram entropy {self.unigram_entropy:.3f}, {kinds} "
            f"({self.texts} texts, {self.tokens} tokens)"
        )


def judge(
    texts: Sequence[Ids], model: NgramModel, orders: Sequence[int] = (1, 2, 3)
) -> TextQuality:
    """The quality of texts, empty ones left out; all figures are NaN where nothing is left."""
    kept = [list(text) for text in texts if len(text)]
    tokens = sum(map(len, kept))
    if not tokens:
        nothing = dict.fromkeys(orders, math.nan)
        return TextQuality(
            nats_per_token=math.nan, unigram_entropy=math.nan, distinct=nothing, texts=0, tokens=0
        )
    return TextQuality(
        nats_per_token=float(model.nll(kept).sum()) / tokens,
        unigram_entropy=sum(map(unigram_entropy, kept)) / len(kept),
        distinct={n: distinct(kept, n) for n in orders},
        texts=len(kept),
        tokens=tokens,
    )


def unigram_entropy(ids: Ids) -> float:
    """Entropy in nats of the tokens of one text: [1, 1, 2, 2] -> log 2."""
    counts = Counter(ids).values()
    return -sum(count / len(ids) * math.log(count / len(ids)) for count in counts)


def distinct(texts: Sequence[Ids], n: int) -> float:
    """The share of n-grams that are different, over all texts: [[1, 1, 1]] with n=2 -> 1/2."""
    grams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one answer ended.

    Attributes:
        length: tokens before the ending, or of the whole canvas where there is none.
        reference: tokens of the answer that a person wrote. canvas: positions there were.
        ended: whether it ended by itself.
    """

    length: int
    reference: int
    canvas: int
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingShares:
    """Shares of answers; `fitting`, `short`, `long`, `edge` and `never` add up to 1.

    Attributes:
        fitting: end within the reference's length plus or minus a half. short, long: end before
            or after that. edge: end on the canvas's last position, wherever that lies.
        never: fill the canvas without an ending, and are cut.
        mean_ratio: length by reference's length, of those that end; NaN where none does.
    """

    fitting: float
    short: float
    long: float
    edge: float
    never: float
    mean_ratio: float
    answers: int

    def __str__(self) -> str:
        mean = f"mean length {self.mean_ratio:.2f} of the reference"
        if math.isnan(self.mean_ratio):
            mean = "none ends by itself"
        return (
            f"{self.fitting:.1%} end within the reference's length ± 50 %, "
            f"{self.short:.1%} before, {self.long:.1%} after, "
            f"{self.edge:.1%} at the canvas's edge, {self.never:.1%} never; "
            f"{mean} ({self.answers} answers)"
        )


def ending_shares(endings: Sequence[Ending]) -> EndingShares:
    """Count how answers ended; raises ValueError without an answer."""
    if not endings:
        raise ValueError("there must be at least one answer, got none")
    counts = Counter(map(_kind_of, endings))
    ratios = [each.length / each.reference for each in endings if each.ended]
    shares = {kind: counts[kind] / len(endings) for kind in _KINDS}
    mean = sum(ratios) / len(ratios) if ratios else math.nan
    return EndingShares(**shares, mean_ratio=mean, answers=len(endings))


_KINDS = ("fitting", "short", "long", "edge", "never")


def _kind_of(ending: Ending) -> str:
    if not ending.ended:
        return "never"
    if ending.length >= ending.canvas - 1:
        return "edge"
    if ending.length < 0.5 * ending.reference:
        return "short"
    return "long" if ending.length > 1.5 * ending.reference else "fitting"
