"""The figures of what a model writes: on texts whose figures are known, and on tiny models."""

import json
import math
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusiongpt.engine import InvalidRequest
from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.generation import (
    CURVE,
    load_engine,
    measure_endings,
    measure_infilling,
    quality_curve,
    stop_ids_of,
)
from diffusiongpt.training.judge import fit_ngram
from diffusiongpt.training.ngram import NgramModel
from diffusiongpt.training.quality import Ending, distinct, ending_shares, judge, unigram_entropy
from diffusiongpt.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def test_variety_is_that_of_the_definition():
    assert unigram_entropy([1, 1, 2, 2]) == pytest.approx(math.log(2))
    assert unigram_entropy([5, 5, 5]) == 0
    assert distinct([[1, 1, 1]], 2) == 0.5
    assert distinct([[1, 2], [1, 2], [2, 1]], 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct([[1]], 2))


def test_a_text_that_repeats_itself_has_low_surprise_and_no_variety():
    model = NgramModel(3, 20).fit([[1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7]] * 4)
    dull, varied = judge([[1] * 12], model), judge([[1, 2, 3, 4, 5, 6]], model)
    assert dull.unigram_entropy == 0 < varied.unigram_entropy
    assert dull.distinct[2] < varied.distinct[2] == 1
    assert dull.nats_per_token == pytest.approx(float(model.nll([[1] * 12]).mean()))
    assert dull.perplexity == pytest.approx(math.exp(dull.nats_per_token))
    assert math.isnan(judge([[]], model).perplexity)


def test_every_answer_is_counted_once():
    def answer(length, ended=True):
        return Ending(length=length, reference=10, canvas=32, ended=ended)

    shares = ending_shares([answer(5), answer(15), answer(4), answer(16), answer(31)])
    assert (shares.fitting, shares.short, shares.long, shares.edge) == (0.4, 0.2, 0.2, 0.2)
    assert shares.mean_ratio == pytest.approx(71 / 50)
    cut = ending_shares([answer(32, ended=False), answer(10)])
    assert (cut.never, cut.fitting) == (0.5, 0.5)
    assert cut.mean_ratio == 1
    with pytest.raises(ValueError, match="at least one answer"):
        ending_shares([])


class ScriptedEngine:
    """Answers every prompt with the same tokens, cut at the canvas."""

    def __init__(self, ids, stop):
        self.ids, self.stop = ids, stop
        self.info = SimpleNamespace(context_length=64)

    def generate(self, prompts, params):
        ended = len(self.ids) < params.max_tokens
        ids = [*self.ids, self.stop] if ended else self.ids[: params.max_tokens]
        reason = SimpleNamespace(value="stop" if ended else "length")
        return [SimpleNamespace(token_ids=tuple(ids), finish_reason=reason) for _ in prompts]


@pytest.fixture
def chats(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the cat ran"}]
    (tmp_path / "held.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    return str(tmp_path), len(tokenizer("the cat ran")["input_ids"])


def test_endings_are_measured_against_the_reference(chats, tokenizer):
    data_dir, reference = chats
    for length, kind in ((reference, "fitting"), (1, "short"), (30, "long"), (40, "never")):
        engine = ScriptedEngine([9] * length, 3)
        shares = measure_endings(engine, tokenizer, {3}, "held", data_dir, max_tokens=40)
        assert getattr(shares, kind) == 1, kind
    edge = measure_endings(
        ScriptedEngine([9] * 39, 3), tokenizer, {3}, "held", data_dir, max_tokens=40
    )
    assert edge.edge == 1
    with pytest.raises(ConfigError, match="max_tokens=2"):
        measure_endings(ScriptedEngine([9], 3), tokenizer, {3}, "held", data_dir, max_tokens=2)


def test_the_same_chats_are_taken_for_every_canvas(tmp_path, tokenizer):
    plain = [{"role": "user", "content": "a"}]
    shortest = len(tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"])
    prompts = ["a", "a" + " a" * 30, "a"]
    answers = ["the cat ran", "the cat ran", "the cat ran " * 3]
    lines = [
        json.dumps(
            {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]}
        )
        for p, a in zip(prompts, answers, strict=True)
    ]
    (tmp_path / "held.jsonl").write_text("\n".join(lines))
    engine = ScriptedEngine([9], 3)
    engine.info.context_length = shortest + 30 + 20  # the second prompt fits beside 16, not 40
    where = (tokenizer, {3}, "held", str(tmp_path))
    alone = [measure_endings(engine, *where, max_tokens=n).answers for n in (16, 40)]
    both = [measure_endings(engine, *where, n, canvases=[16, 40]).answers for n in (16, 40)]
    assert alone == [2, 2]
    assert both == [1, 1]


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    """Texts in which each word tells the next one."""
    folder = tmp_path_factory.mktemp("cycle")
    words = ["the", "cat", "dog", "saw", "ran", "home", "to", "a", "big", "red", "ball"]
    texts = [" ".join((words[i % 11 :] + 3 * words)[:24]) for i in range(60)]
    (folder / "cycle.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(folder)


class FillingEngine:
    """Fills every second hole rightly, and only the first token of the others."""

    info = SimpleNamespace(context_length=64)

    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompts, params):
        answers = []
        for index, infill in enumerate(prompts):
            before, hole, after = infill.parts
            text = next(
                ids
                for ids in self.texts
                if ids[: len(before)] == before and ids[len(before) + hole.length :] == after
            )
            ids = text[len(before) : len(before) + hole.length]
            wrong = [ids[0], *(0 for _ in ids[1:])]
            answers.append(SimpleNamespace(token_ids=tuple(ids if index % 2 else wrong)))
        return answers


def test_filled_holes_are_counted(cycle, tokenizer):
    lines = (Path(cycle) / "cycle.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [tokenizer(json.loads(line)["text"])["input_ids"][:48] for line in lines]
    engine = FillingEngine(texts)
    score = measure_infilling(engine, tokenizer, "cycle", cycle, span_tokens=4, count=16)
    assert (score.holes, score.spans, score.tokens) == (16, 0.5, 0.5 + 0.5 / 4)
    with pytest.raises(ConfigError, match="longer than a span of 60 tokens"):
        measure_infilling(engine, tokenizer, "cycle", cycle, span_tokens=60)


def test_a_model_that_sees_nothing_after_a_hole_is_refused(cycle, tokenizer):
    class CausalEngine(FillingEngine):
        def generate(self, prompts, params):
            raise InvalidRequest("it sees nothing after its block")

    with pytest.raises(ConfigError, match="it sees nothing after its block"):
        measure_infilling(CausalEngine([]), tokenizer, "cycle", cycle)


def test_a_model_whose_answers_never_end_is_told_in_words():
    shares = ending_shares([Ending(length=32, reference=10, canvas=32, ended=False)])
    assert str(shares).endswith("100.0% never; none ends by itself (1 answers)")


def test_an_ngram_that_is_longer_than_every_document_is_the_shorter_one():
    texts = [[1, 2], [1, 3], [2]]
    long, short = (NgramModel(order, 5).fit(texts).nll(texts) for order in (5, 2))
    assert long.tolist() == short.tolist()


def test_a_served_model_is_judged_at_every_cost(make_config, tokenizer, cycle, capsys):
    config = make_config(
        data={"data_dir": cycle, "mix": {"cycle": 1.0}},
        diffusion={"objective": "masked"},
        run={"max_steps": 2},
    )
    folder = train(config)
    engine = load_engine(folder)
    model = fit_ngram(tokenizer, ["cycle"], config.data)
    points = list(
        quality_curve(
            engine, tokenizer, stop_ids_of(folder), model, "cycle", cycle, max_tokens=12, count=4
        )
    )
    assert len(points) == len(CURVE)
    assert points[0].forwards > points[1].forwards > points[2].forwards
    assert all(point.quality.perplexity > 1 for point in points if point.quality.texts)
    capsys.readouterr()
    arguments = ["eval", str(folder), "cycle", "--data_dir", cycle, "--count", "4"]
    arguments += ["--cache_dir", config.data.cache_dir]
    assert main([*arguments, "--infill"]) == 0
    assert "holes of 4 tokens" in capsys.readouterr().out
    curve = [*arguments, "--curve", "--fit", "cycle", "--max_tokens", "8"]
    pytest.importorskip("matplotlib")
    picture = Path(config.run.output_dir) / "curve.png"
    assert main([*curve, "--plot", str(picture)]) == 0
    assert "entropy_bound" in capsys.readouterr().out
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert (width, height) == (1080, 480)
    assert main([*curve, "--plot", "no/such/folder.png"]) == 2
    assert "'no/such/folder.png' cannot be written" in capsys.readouterr().err
    assert main([*arguments, "--infill", "--plot", str(picture)]) == 2
    assert "--plot is of --curve, which is not given" in capsys.readouterr().err
    assert main([*arguments, "--curve"]) == 2
    assert "--curve needs --fit" in capsys.readouterr().err
