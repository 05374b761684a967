"""What the approximate caches of bidirectional models cost in quality and save in time.

Quality: a small network learns texts whose law is known, a mixture of Markov chains (which chain
it is shows only in the whole text), and continues true beginnings; the law says how likely each
answer is. The same seeds are drawn with every cache, so answers agree where nothing is lost.
Time: a random network of the bundled model's shape, as a small one shows overhead only.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ModernBertForMaskedLM

from diffusiongpt.engine import Completion, Engine, GenerationParams

from measure import MASK, in_turn, parse_arguments, ratio, report, write_random_model

CACHES = ("off", "prefix", "dual")
STATES, FIRST_STATE = 12, 5
TOY = {
    "vocab_size": FIRST_STATE + STATES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "max_position_embeddings": 64,
}


class Mixture:
    """Texts of one of several Markov chains, uniform at the start."""

    def __init__(self, num_chains: int = 2) -> None:
        self._random = torch.Generator().manual_seed(0)
        shape = (num_chains, STATES, STATES)
        weights = torch.rand(shape, generator=self._random, dtype=torch.double) ** 8
        chains = weights / weights.sum(dim=2, keepdim=True)
        self.chains = 0.97 * chains + 0.03 / STATES  # (chains, STATES, STATES)

    def sample(self, num: int, length: int) -> Tensor:
        """(num, length) token ids."""
        chain = torch.randint(len(self.chains), (num,), generator=self._random)
        state = torch.randint(STATES, (num,), generator=self._random)
        states = [state]
        for _ in range(length - 1):
            chances = self.chains[chain, states[-1]]
            states.append(torch.multinomial(chances, 1, generator=self._random)[:, 0])
        return torch.stack(states, dim=1) + FIRST_STATE

    def log_prob(self, ids: Tensor) -> Tensor:
        """(num,) log-probabilities of (num, length) token ids."""
        states = ids - FIRST_STATE
        steps = self.chains[:, states[:, :-1], states[:, 1:]].log().sum(dim=2)  # (chains, num)
        return steps.logsumexp(dim=0) - math.log(len(self.chains) * STATES)


def train(folder: Path, law: Mixture, steps: int) -> None:
    """Train the folder's network as a masked diffusion model of the law, and save it there."""
    config = (folder / "config.json").read_text()
    network = ModernBertForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = law.sample(32, 64)
        masked = torch.rand(ids.shape, generator=random) < torch.rand(32, 1, generator=random)
        logits = network(input_ids=ids.masked_fill(masked, MASK)).logits
        nll = torch.nn.functional.cross_entropy(logits.mT, ids, reduction="none")
        loss = (nll * masked).sum() / masked.sum()  # without 1/t: the same optimum, less noise
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.save_pretrained(folder)
    (folder / "config.json").write_text(config)  # with its diffusion section


def measure_quality(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Agreement with the uncached tokens and NLL (nats/token, standard error) of each cache."""
    law = Mixture()
    folder = write_random_model(False, **TOY)
    train(folder, law, 2 if options.quick else options.train)
    engine = Engine.from_pretrained(folder, dtype="float32", device=options.device)
    given, length = 16, 48
    texts = law.sample(2 if options.quick else options.texts, given + length)
    prompts = texts[:, :given].tolist()
    params = GenerationParams(
        max_tokens=length, block_length=16, policy="random", seed=1, ignore_eos=True, top_k=STATES
    )
    answers = {
        cache: as_tensor(engine.generate(prompts, params.replace(cache=cache))) for cache in CACHES
    }
    beginning = law.log_prob(texts[:, :given])
    table = {"true texts": nll_of(law, texts, beginning, length)}
    for cache, tokens in answers.items():
        whole = torch.cat([texts[:, :given], tokens], dim=1)
        agreement = (tokens == answers["off"]).double().mean().item()
        table[cache] = {"agreement": agreement, **nll_of(law, whole, beginning, length)}
    return table


def as_tensor(completions: list[Completion]) -> Tensor:
    """(num, length) token ids; the trained network hardly ever writes what is no state."""
    return torch.tensor([each.token_ids for each in completions]).clamp(min=FIRST_STATE)


def nll_of(law: Mixture, texts: Tensor, beginning: Tensor, length: int) -> dict[str, float]:
    """Nats a token of what follows the beginnings, with its standard error."""
    nll = (beginning - law.log_prob(texts)) / length
    return {"nll": nll.mean().item(), "nll_error": (nll.std() / len(nll) ** 0.5).item()}


def measure_time(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """How many times faster each cache is than none, paired."""
    engine = Engine.from_pretrained(write_random_model(options.quick), device=options.device)
    length = 32 if options.quick else options.length
    prompts = [[5 + (shift + i) % 50 for i in range(options.prompt)] for shift in range(8)]
    params = GenerationParams(
        max_tokens=length,
        block_length=8 if options.quick else options.block,
        steps=length // 2,
        policy="confidence",
        seed=1,
        ignore_eos=True,
    )
    seconds = in_turn(
        options.repeats,
        **{
            cache: lambda cache=cache: engine.generate(
                prompts[: options.requests], params.replace(cache=cache)
            )
            for cache in CACHES
        },
    )
    return {
        cache: {"seconds": statistics.median(seconds[cache])}
        | ratio(seconds["off"], seconds[cache])
        for cache in CACHES
    }


def print_table(quality: dict[str, dict[str, float]], time: dict[str, dict[str, float]]) -> None:
    """The table, for people; to stderr, as the report goes to stdout."""
    lines = ["cache       same tokens   nats/token       times faster"]
    for name, row in quality.items():
        same = f"{row['agreement']:.1%}" if name in time else ""
        speed = f"{time[name]['median']:.2f}" if name in time else ""
        nll = f"{row['nll']:.3f} +- {row['nll_error']:.3f}"
        lines.append(f"{name:<11} {same:>11}   {nll}   {speed:>12}")
    sys.stderr.write("\n".join(lines) + "\n")


def main() -> None:
    """Measure and report."""
    numbers = {"train": 700, "texts": 128, "requests": 1, "prompt": 64, "length": 128, "block": 32}
    options = parse_arguments(__doc__ or "", **numbers)
    quality = measure_quality(options)
    time = measure_time(options)
    print_table(quality, time)
    result: dict[str, Any] = {"quality": quality, "times_faster": time}
    report(options, "approx_cache", "a table: what is lost, what is gained", result)


if __name__ == "__main__":
    main()
