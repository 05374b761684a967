"""Broken drafts refined by a denoiser that knows the exact posterior of a Markov chain.

A fifth of the tokens of true chains is replaced at random. Prints, for each way to refine them, the
forwards per draft, the negative log-likelihood in nats per token and the total variation of the
bigrams, as `oracle_table.py` does, and what share of the true tokens was kept and of the wrong ones
replaced.

    python benchmarks/draft_table.py [--num 500]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusiongpt.engine import Draft, Engine, GenerationParams
from diffusiongpt.engine.params import EditParams

from oracle_table import LENGTH, MarkovModel, markov_chain, table_row, toy_engine

BROKEN = 0.2
EDITS = EditParams(threshold=0.5, max_rounds=4)
ROWS: tuple[tuple[float, str, EditParams | None], ...] = (
    (0.1, "doubtful", None),
    (0.2, "doubtful", None),
    (0.3, "doubtful", None),
    (0.5, "doubtful", None),
    (0.1, "random", None),
    (0.2, "random", None),
    (0.3, "random", None),
    (0.5, "random", None),
    (0.0, "doubtful", EDITS),
    (0.2, "doubtful", EDITS),
    (1.0, "random", None),
)


def corrupt(chains: Tensor, states: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Chains (N, L) with a share of their tokens replaced, and where that made another of one."""
    noise = torch.randint(0, states, chains.shape, generator=generator)
    is_hit = torch.rand(chains.shape, generator=generator) < BROKEN
    drafts = torch.where(is_hit, noise, chains)
    return drafts, drafts != chains


def refine(
    engine: Engine, drafts: Tensor, strength: float, pick: str, edits: EditParams | None
) -> tuple[Tensor, float]:
    """Every draft (N, L) refined with a seed of its own, and forwards per draft."""
    rows, num_forwards = [], 0
    for seed, ids in enumerate(drafts.tolist()):
        draft = Draft(tuple(ids), strength, pick)  # type: ignore[arg-type]
        params = GenerationParams(
            max_tokens=LENGTH,
            policy="confidence",
            temperature=1.0,
            seed=seed,
            draft=draft,
            edits=edits,
        )
        engine.add(engine.prepare([], params))
    found: dict[str, dict[int, int]] = {}
    while not engine.is_idle:
        for frame in engine.step():
            found.setdefault(frame.request_id, {}).update(dict(frame.tokens))
            num_forwards += frame.usage.nfe if frame.usage else 0
    # Requests are numbered in the order in which they were prepared.
    for name in sorted(found, key=lambda name: int(name.split("-")[1])):
        rows.append([found[name][position] for position in range(LENGTH)])
    return torch.tensor(rows), num_forwards / len(rows)


def describe(strength: float, pick: str, edits: EditParams | None) -> str:
    """A row's parameters in words."""
    return f"strength {strength}, {pick}" + (f", edits above {edits.threshold}" if edits else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=500, help="drafts of each row")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args(arguments)
    model = MarkovModel(markov_chain(seed=2), context_length=LENGTH)
    generator = torch.Generator().manual_seed(1)
    truth = model.sample(options.num, LENGTH, generator)
    drafts, is_wrong = corrupt(truth, model.vocab_size - 1, generator)
    sys.stdout.write(
        "| refined | NFE | NLL, nats/token | bigram TV | true kept | wrong replaced |\n"
    )
    sys.stdout.write("|---|---|---|---|---|---|\n")
    sys.stdout.write(f"{table_row(model, 'the chain itself', None, truth)} | |\n")
    sys.stdout.write(f"{table_row(model, 'the drafts', None, drafts)} 100 % | 0 % |\n")
    for strength, pick, edits in ROWS:
        name = describe(strength, pick, edits)
        if options.only not in name:
            continue
        engine = toy_engine(
            model, num_slots=512, token_budget=512 * LENGTH, max_waiting=options.num
        )
        ours, nfe = refine(engine, drafts, strength, pick, edits)
        kept = (ours == drafts)[~is_wrong].float().mean()
        replaced = (ours != drafts)[is_wrong].float().mean()
        row = table_row(model, name, nfe, ours)
        sys.stdout.write(f"{row} {100 * kept:.0f} % | {100 * replaced:.0f} % |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
