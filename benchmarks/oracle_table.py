"""Every policy against a denoiser that knows the exact posterior of a Markov chain.

Prints a table: forwards per answer, negative log-likelihood in nats per token beside the
chain's own, and the total variation of the bigrams beside its noise floor, each with its standard
error (of the second by redrawing the answers). A sampler that draws from the model's law is at
both; a gain in likelihood alone is not a gain.

    python benchmarks/oracle_table.py [--num 1000] [--only wino]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusiongpt.engine.params import EditParams, GenerationParams

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engine"))
from toy_models import MarkovModel, markov_chain, toy_engine

LENGTH = 32
NUM_REDRAWN = 200
ROWS: tuple[dict[str, object], ...] = (
    {"policy": "ancestral"},
    {"policy": "ancestral", "steps": 16},
    {"policy": "random", "steps": 16},
    {"policy": "random", "steps": 8},
    {"policy": "random", "steps": 8, "gap": 4},
    {"policy": "confidence"},
    {"policy": "confidence", "steps": 16},
    {"policy": "margin", "steps": 16},
    {"policy": "entropy", "steps": 16},
    {"policy": "threshold"},
    {"policy": "threshold", "threshold": 0.6},
    {"policy": "factor"},
    {"policy": "entropy_bound", "entropy_bound": 0.5},
    {"policy": "entropy_bound", "entropy_bound": 2.0, "gap": 4},
    {"policy": "pos_bias", "entropy_bound": 0.5},
    {"policy": "stability", "threshold": 0.6},
    {"policy": "stability", "threshold": 0.4},
    {"policy": "credit", "threshold": 0.9},
    {"policy": "credit", "threshold": 0.6},
    {"policy": "joint"},
    {"policy": "random", "steps": 8, "edits": EditParams(threshold=0.5, max_rounds=4)},
    {"policy": "random", "steps": 8, "edits": EditParams(threshold=1.0, doubt=0.1, max_rounds=4)},
    {"policy": "verify"},
    {"policy": "threshold", "threshold": 0.3, "block_length": 8},
    {"policy": "wino", "threshold": 0.3, "block_length": 8},
    {"policy": "p2", "steps": 16},
    {"policy": "ancestral", "steps": 32},
    {"policy": "remdm", "steps": 64},
    {"policy": "remdm_rescale", "steps": 64},
    {"policy": "remdm_loop", "steps": 64},
    {"policy": "remdm_confidence", "steps": 64, "remask": 0.05},
)


def sample(model: MarkovModel, num: int, fields: dict[str, object]) -> tuple[Tensor, float]:
    """Completions (N, L) of an empty prompt, and forwards per answer."""
    engine = toy_engine(model, num_slots=512, token_budget=512 * LENGTH, max_waiting=num)
    params = GenerationParams(max_tokens=LENGTH, temperature=1.0, seed=0, **fields)  # type: ignore[arg-type]
    done = engine.generate([[] for _ in range(num)], params)
    nfe = sum(each.usage.nfe for each in done) / num
    return torch.tensor([each.token_ids for each in done]), nfe


def total_variation(model: MarkovModel, chains: Tensor) -> tuple[float, float]:
    """Distance of the bigram frequencies from the chain's own, and its standard error: how much it
    varies over sets of as many chains, redrawn from these."""
    exact = (model.stationary[:, None] * model.transition).flatten()
    states, num = model.transition.shape[0], len(chains)
    pairs = chains[:, :-1] * states + chains[:, 1:]
    counts = torch.zeros(num, states**2, dtype=exact.dtype)
    counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=exact.dtype))
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(num, (NUM_REDRAWN, num), generator=generator)
    sets = torch.stack([counts.sum(dim=0), *(counts[each].sum(dim=0) for each in drawn)])
    distance = 0.5 * (sets / sets.sum(dim=1, keepdim=True) - exact).abs().sum(dim=1)
    return distance[0].item(), distance[1:].std().item()


def table_row(model: MarkovModel, name: str, nfe: float | None, chains: Tensor) -> str:
    """One line of the table."""
    loss = model.negative_log_likelihood(chains)
    error = (loss.var() / len(loss)).sqrt()
    forwards = "" if nfe is None else f"{nfe:.1f}"
    distance, spread = total_variation(model, chains)
    columns = (name, forwards, f"{loss.mean():.3f} ± {error:.3f}", f"{distance:.3f} ± {spread:.3f}")
    return f"| {' | '.join(columns)} |"


def describe(fields: dict[str, object]) -> str:
    """A row's parameters in words."""
    policy, *rest = fields.items()
    words = [f"`{policy[1]}`", *(f"{name} {value}" for name, value in rest if name != "edits")]
    edits = fields.get("edits")
    if isinstance(edits, EditParams):
        words.append(f"doubt {edits.doubt}" if edits.doubt else f"edits above {edits.threshold}")
    return ", ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=1000, help="answers of each row")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args(arguments)
    model = MarkovModel(markov_chain(seed=2), context_length=LENGTH)
    lines = ["| policy | NFE | NLL, nats/token | bigram TV |", "|---|---|---|---|"]
    truth = model.sample(options.num, LENGTH, torch.Generator().manual_seed(1))
    lines.append(table_row(model, "the chain itself", None, truth))
    sys.stdout.write("\n".join(lines) + "\n")
    for fields in ROWS:
        if options.only in describe(fields):
            chains, nfe = sample(model, options.num, fields)
            sys.stdout.write(table_row(model, describe(fields), nfe, chains) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
