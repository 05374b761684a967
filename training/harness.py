"""A folder under lm-evaluation-harness: likelihoods by the bound, answers by the engine.

What the harness calls a log-likelihood is here the negative of a Monte Carlo estimate of the
bound: it is no better than the model deserves, on average. The harness is imported when it is
needed, and not before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.folders import load_tokenizer
from diffusiongpt.training.generation import load_engine
from diffusiongpt.training.pieces import encode_texts

if TYPE_CHECKING:
    from diffusiongpt.engine import Engine

MODEL_NAME = "diffusiongpt"
Encode = Callable[[str], list[int]]


class Scorer:
    """An engine and a tokenizer, asked in the harness's three ways.

    Args:
        draws: noise levels of each estimate; the estimate's error shrinks with their square root.
        max_tokens: of an answer, where a task does not say.
        seed: of the estimates and of the answers.
    """

    def __init__(
        self, engine: Engine, tokenizer: Any, draws: int = 32, max_tokens: int = 128, seed: int = 0
    ) -> None:
        if draws < 1:
            raise ConfigError(f"draws must be at least 1, got {draws}")
        self.engine, self.tokenizer = engine, tokenizer
        self.draws, self.max_tokens, self.seed = draws, max_tokens, seed

    def encode(self, text: str) -> list[int]:
        """Token ids, marks of a chat included where the text spells them out."""
        return encode_texts(self.tokenizer, [text])[0] if text else []

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-likelihood, is what greedy denoising writes) of each continuation of a context."""
        split = [split_pair(self.encode, *pair) for pair in pairs]
        fitted = [(self._fit(before, len(after)), after) for before, after in split]
        nats = [self._nats(before, after) for before, after in fitted]
        greedy = self._are_greedy(fitted)
        return [(-each, is_greedy) for each, is_greedy in zip(nats, greedy, strict=True)]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each whole text, every token once, whatever its length."""
        length = self.engine.info.context_length
        windows = [rolling_windows(self.encode(text), length) for text in texts]
        return [-sum(self._nats(*window) for window in each) for each in windows]

    def generate(self, asks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The answer to each (context, the harness's generation arguments)."""
        from diffusiongpt.engine import EngineError, GenerationParams

        groups: dict[Any, list[int]] = defaultdict(list)
        for place, (_, arguments) in enumerate(asks):
            groups[generation_settings(arguments, self.max_tokens)].append(place)
        answers = [""] * len(asks)
        for settings, places in groups.items():
            params = dict(settings)
            prompts = [self._fit(self.encode(asks[i][0]), params["max_tokens"]) for i in places]
            try:
                written = self.engine.generate(prompts, GenerationParams(seed=self.seed, **params))
            except EngineError as error:
                raise ConfigError(str(error)) from error
            for place, completion in zip(places, written, strict=True):
                answers[place] = completion.text
        return answers

    def _nats(self, before: Sequence[int], after: Sequence[int]) -> float:
        if not after:
            return 0.0
        found = self.engine.score([after], prompt=before, draws=self.draws, seed=self.seed)
        return found[0].nats

    def _are_greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether denoising one token a step, the surest first, writes each continuation."""
        from diffusiongpt.engine import GenerationParams

        groups: dict[int, list[int]] = defaultdict(list)
        for place, (_, after) in enumerate(pairs):
            groups[len(after)].append(place)
        same = [False] * len(pairs)
        for length, places in groups.items():
            params = GenerationParams(
                max_tokens=length, policy="confidence", temperature=0.0, ignore_eos=True
            )
            for place, written in zip(
                places, self.engine.generate([pairs[i][0] for i in places], params), strict=True
            ):
                same[place] = list(written.token_ids) == pairs[place][1]
        return same

    def _fit(self, before: list[int], num_after: int) -> list[int]:
        """The end of a context that leaves room for what follows it."""
        info = self.engine.info
        room = info.context_length - max(num_after, info.block_length or 1)
        if room < 0:
            raise ConfigError(
                f"a continuation of {num_after} tokens does not fit into the model's context of "
                f"{info.context_length}"
            )
        return before[max(len(before) - room, 0) :]


def split_pair(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what continues it, at least one; they are encoded together.

    Spaces at the context's end belong to the continuation, as tokens of words begin with them.
    """
    before_text = context.rstrip()
    after_text = context[len(before_text) :] + continuation
    before, whole = encode(before_text), encode(before_text + after_text)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    after = encode(after_text)
    if not after:
        raise ConfigError(f"a continuation must have at least one token, got {continuation!r}")
    return before, after


def rolling_windows(ids: list[int], length: int) -> list[tuple[list[int], list[int]]]:
    """(given, scored) parts of a long text: the first as long as a context, later ones half."""
    windows: list[tuple[list[int], list[int]]] = [([], ids[:length])]
    step = max(length // 2, 1)
    for start in range(length, len(ids), step):
        after = ids[start : start + step]
        windows.append((ids[start + len(after) - length : start], after))
    return windows


def generation_settings(arguments: Mapping[str, Any], max_tokens: int) -> tuple[Any, ...]:
    """The harness's generation arguments as items of `GenerationParams`; unknown ones refused."""
    known = {"until", "max_gen_toks", "max_new_tokens", "temperature", "do_sample", "top_p"}
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"a task asks for {name!r}, which cannot be honoured; accepted are "
                f"{', '.join(sorted(known))}"
            )
    until = arguments.get("until") or ()
    settings: dict[str, Any] = {
        "stop": (until,) if isinstance(until, str) else tuple(each for each in until if each),
        "max_tokens": arguments.get("max_gen_toks", arguments.get("max_new_tokens", max_tokens)),
        "temperature": float(arguments.get("temperature", 0.0)),
    }
    if not arguments.get("do_sample", settings["temperature"] > 0):
        settings["temperature"] = 0.0
    if "top_p" in arguments:
        settings["top_p"] = float(arguments["top_p"])
    return tuple(settings.items())


@cache
def register() -> type[Any]:
    """The model class of the harness, known to it as `diffusiongpt`."""
    _import_harness()
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    @register_model(MODEL_NAME)
    class DiffusionLM(LM):  # type: ignore[misc]
        """A folder that `serve` takes; `pretrained` names it."""

        def __init__(
            self, pretrained: str, draws: int = 32, max_tokens: int = 128, seed: int = 0, **_: Any
        ) -> None:
            super().__init__()
            engine = load_engine(pretrained)
            tokenizer = load_tokenizer(pretrained)
            self.scorer = Scorer(engine, tokenizer, int(draws), int(max_tokens), int(seed))

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            """By the bound."""
            return self.scorer.loglikelihoods([each.args for each in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            """By the bound."""
            return self.scorer.rolling([each.args[0] for each in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            """By the engine."""
            return self.scorer.generate([each.args for each in requests])

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            """The folder's own template."""
            text: str = self.scorer.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            return text

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            """The template, for the harness's records."""
            template: str | None = self.scorer.tokenizer.chat_template
            return template if chat_template else None

        @property
        def tokenizer_name(self) -> str:
            """The folder's name, for the harness's caches."""
            return Path(self.scorer.tokenizer.name_or_path).name

    return DiffusionLM


def run_tasks(
    folder: str | Path,
    tasks: Sequence[str],
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    draws: int = 32,
    max_tokens: int = 128,
    seed: int = 0,
) -> str:
    """Run tasks of the harness, and those of the YAML files in `include_path`; their table.

    Raises:
        ConfigError: no such task, or the harness is not installed.
    """
    _import_harness()
    model = register()(str(folder), draws=draws, max_tokens=max_tokens, seed=seed)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    manager = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(f"the harness has no task {unknown[0]!r}; `--include_path` adds folders")
    results = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=chat,
        log_samples=False,
        bootstrap_iters=1000,
    )
    table: str = make_table(results)
    return table


def _import_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the harness is not installed: pip install diffusiongpt[lm-eval]"
        ) from error
