"""A guide keeps whatever is drawn within its language, and always gets to the end of a text."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import jsonschema
import pytest

from diffusiongpt.engine.constraint import Constraint, ConstraintKind
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.guide import Guide
from diffusiongpt.engine.languages import Language, Languages
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary, as_set, holds, members

from tiny_tokenizer import IM_END, VOCAB_SIZE

SCHEMAS = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "schemas.json").read_text(encoding="utf-8")
)
SOME_SCHEMAS = (
    "a bounded person",
    "an order",
    "a tree",
    "optional keys",
    "keys in other scripts",
    "a date",
    "an enumeration of all kinds",
    "twenty keys",
)


@pytest.fixture(scope="module")
def languages(vocabulary: Vocabulary) -> Languages:
    return Languages(vocabulary, longest=1024)


def compiled(languages: Languages, kind: ConstraintKind, source: str = "") -> Language:
    return languages.compile(Constraint(kind=kind, source=source))


def write(language: Language, length: int, seed: int) -> list[int]:
    """Tokens of a text that a careless model wrote: runs of proposals, drawn from anything."""
    chance = random.Random(seed)
    guide, tokens = Guide(language, length), []
    for _ in range(9 * length + 30):
        if guide.is_complete:
            return tokens
        if chance.random() < 0.5:
            tokens += guide.take_forced(chance.randrange(4))
            continue
        first = chance.choice(list(members(guide.allowed())))
        run = [first, *(chance.randrange(VOCAB_SIZE) for _ in range(chance.randrange(4)))]
        tokens += run[: guide.accept(run[: length - guide.position])]
        assert guide.position == len(tokens) <= length
    raise AssertionError(f"no end after {len(tokens)} of {length} tokens")


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, tokens)).decode()


@pytest.mark.parametrize("name", SOME_SCHEMAS)
def test_what_is_written_satisfies_the_schema_whatever_the_room(
    tokenizer: Tokenizer, languages: Languages, name: str
):
    schema = SCHEMAS[name]
    language = compiled(languages, "json_schema", json.dumps(schema))
    for seed, spare in enumerate((0, 1, 2, 3, 5, 9, 40)):
        tokens = write(language, len(language.shortest) + spare, seed)
        text = text_of(tokenizer, tokens)
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_a_regex_holds_for_the_whole_text(tokenizer: Tokenizer, languages: Languages):
    for regex in (r"[a-c]{2,9}", r"^(yes|no|perhaps)$", r"\d+(\.\d{2})?", r"é+[☃🙂]", r"a\$"):
        language = compiled(languages, "regex", regex)
        for seed in range(12):
            tokens = write(language, len(language.shortest) + seed, seed)
            assert re.fullmatch(regex, text_of(tokenizer, tokens)), regex


def test_a_choice_is_one_of_the_texts(tokenizer: Tokenizer, languages: Languages):
    choices = ["", "the cat", "a\nb", "(x|y)*", "\\", "é🙂", "the"]
    language = compiled(languages, "choice", json.dumps(choices))
    assert language.shortest == ()
    written = {text_of(tokenizer, write(language, 12, seed)) for seed in range(80)}
    assert written == set(choices)


def test_a_grammar_may_hold_a_schema_and_special_tokens(tokenizer: Tokenizer, languages: Languages):
    source = 'start: "call " %json {"type": "object", "properties": {"a": {"type": "integer"}}, '
    source += '"required": ["a"], "additionalProperties": false} <|im_end|>'
    language = compiled(languages, "grammar", source)
    for seed in range(8):
        tokens = write(language, len(language.shortest) + seed, seed)
        assert tokens[-1] == IM_END
        text = text_of(tokenizer, tokens)
        assert text.startswith("call ")
        assert set(json.loads(text[5:])) == {"a"}


def test_no_stop_token_ends_a_text_that_is_not_whole(tokenizer: Tokenizer, languages: Languages):
    source = 'start: "a" <|im_end|> "b"'  # the engine stops at the first end of text
    with pytest.raises(InvalidRequest, match="this grammar cannot be kept: no text"):
        compiled(languages, "grammar", source)


class GivenUp:
    """A matcher that allows everything and takes nothing, as one does that ran into a limit."""

    def deep_copy(self) -> GivenUp:
        return self

    def consume_token(self, token_id: int) -> bool:
        return False

    def try_consume_tokens(self, tokens: list[int]) -> int:
        return 0

    def compute_bitmask(self) -> bytes:
        return b"\xff" * ((VOCAB_SIZE + 7) // 8)

    def is_error(self) -> bool:
        return False

    def is_accepting(self) -> bool:
        return False


def test_when_the_matcher_gives_up_the_known_closing_is_written(
    tokenizer: Tokenizer, languages: Languages
):
    language = compiled(languages, "grammar", 'start: "the " /[a-z]+/ " cat"')
    guide = Guide(language, 20)
    guide._state = GivenUp()  # type: ignore[assignment]
    tokens: list[int] = []
    for _ in range(2 * len(language.shortest) + 2):
        if not guide.is_complete:
            token_id = next(members(guide.allowed()))
            tokens += [token_id] * guide.accept([token_id])
    assert guide.is_complete
    assert tokens == list(language.shortest)


def test_a_token_that_leaves_no_room_is_not_committed(languages: Languages):
    source = json.dumps({"type": "array", "items": {"const": "a long constant text"}})
    language = compiled(languages, "json_schema", source)
    guide = Guide(language, 3)
    run = [*language.vocabulary.encode("["), *language.vocabulary.encode('"a long')]
    assert guide.accept(run) == 1
    assert guide.allowed() == as_set(language.vocabulary.encode("]"))
    assert guide.take_forced(9) == language.vocabulary.encode("]")
    assert guide.is_complete


def test_what_a_language_leaves_no_choice_about_is_taken_at_once(
    tokenizer: Tokenizer, languages: Languages
):
    language = compiled(languages, "json_schema", '{"const": {"the": "cat"}}')
    guide = Guide(language, 30)
    assert text_of(tokenizer, guide.take_forced(2)) == '{"'
    tokens = guide.take_forced(30)
    assert text_of(tokenizer, tokens).startswith('the":')
    assert not holds(guide.allowed(), IM_END)


def test_a_guide_that_loses_its_grammar_follows_the_closing(
    tokenizer: Tokenizer, languages: Languages
):
    language = compiled(languages, "json_schema", json.dumps(SCHEMAS["a bounded person"]))
    guide = Guide(language, 60)
    tokens = guide.take_forced(3)
    guide._state = None  # as when llguidance says that the grammar has become too complex
    guide._allowed = None
    while not guide.is_complete:
        tokens += guide.take_forced(60)
        if not guide.is_complete:
            guide.accept([IM_END])
    person = json.loads(text_of(tokenizer, tokens))
    jsonschema.validate(person, SCHEMAS["a bounded person"])


@pytest.mark.parametrize(
    ("kind", "source", "sentence"),
    [
        ("json_schema", '{"enum": []}', "Unsatisfiable schema"),
        ("json_schema", "false", "Unsatisfiable schema"),
        ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 3}', "minLength"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"type": "string", "format": "nonsense"}', "nonsense"),
        ("json_schema", '{"$ref": "http://localhost/schema"}', "localhost"),
        (
            "json_schema",
            '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
            "no text of at most 1024 tokens",
        ),
        ("json_schema", '{"type": "string", "minLength": 100000}', "no text of at most 1024"),
        (
            "json_schema",
            '{"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}',
            "oneOf needs cases that exclude each other",
        ),
        ("json_schema", "[" * 200 + "]" * 200, "must be an object"),
        ("json_schema", '{"items":' * 200 + "{}" + "}" * 200, "recursion limit"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(", "unclosed group"),
        ("regex", "a{100000}", "no text of at most 1024 tokens"),
        ("regex", "(x+x+)+" * 3000, "cannot be kept"),
        ("grammar", "nonsense", "Expected token"),
        ("grammar", "start: start", "no text"),
        ("grammar", 'start: "a" <|mask|>', "no text"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_a_sentence_and_soon(
    languages: Languages, kind: ConstraintKind, source: str, sentence: str
):
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        compiled(languages, kind, source)
    assert time.thread_time() - began < 2.0  # less than a second where nothing else runs
    assert refusal.value.param == "constraint"
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_language_is_compiled_once(languages: Languages):
    schema = json.dumps(SCHEMAS["a tree"])
    assert compiled(languages, "json_schema", schema) is compiled(languages, "json_schema", schema)
