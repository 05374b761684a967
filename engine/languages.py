"""From a constraint to its language: compiled within limits, kept for the next request.

llguidance reads the grammars and says which tokens may come next. What it does not support, and
what takes too much, is refused in a sentence before anything is started.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusiongpt.engine.automaton import Assembled, NotRegular, TooLarge
from diffusiongpt.engine.burden import check_burden
from diffusiongpt.engine.closing import find_shortest, keeps_closing
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.expression import parts_of_choices, parts_of_regex
from diffusiongpt.engine.fewest import find_fewest
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.schema import parts_of_schema
from diffusiongpt.engine.schema_shortest import ShortestParts
from diffusiongpt.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_KEPT = 128
_MAX_REASON = 200
# Separators with or without a space are the model's choice; other white space would only fill
# the canvas.
_JSON = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}
_ANY_OBJECT = '{"type": "object"}'
_BOOLEAN_SCHEMAS = {"true": "{}", "false": '{"enum": []}'}
# Where llguidance's words would mislead.
_REASONS = {
    "panic: ": "it is too large",
    "oneOf constraints": "oneOf needs cases that exclude each other by a type or a constant",
}
_REGEX_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")
_AT_THE_END = re.compile(r"(?<!\\)(?:\\\\)*\$$")


@dataclass(frozen=True, slots=True)
class Language:
    """A compiled constraint. Nobody moves `matcher`, which stands at the beginning.

    Attributes:
        shortest: tokens of the shortest of its texts that was found.
        automaton: of a regular language that is small enough: it can be filled in any order.
        why_in_order: why there is none, the rest of a sentence, where there is something to say.
        is_shortest_known: whether no text is shorter than `shortest`.
    """

    constraint: Constraint
    matcher: LLMatcher
    vocabulary: Vocabulary
    shortest: tuple[int, ...]
    automaton: LiftedAutomaton | None = None
    why_in_order: str = ""
    is_shortest_known: bool = True

    @property
    def is_in_order(self) -> bool:
        """Whether its texts are written from left to right."""
        return self.automaton is None


class Languages:
    """Compiles the constraints of one model, and keeps the last ones. Thread-safe.

    Args:
        longest: tokens of the longest text that the engine can write.
    """

    def __init__(self, vocabulary: Vocabulary, *, longest: int) -> None:
        self._vocabulary = vocabulary
        self._longest = longest
        self._kept: OrderedDict[Constraint, Language | InvalidRequest] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> Language:
        """The language of a constraint.

        Raises:
            InvalidRequest: it is not supported, too large, or has no text that was found.
        """
        with self._lock:
            found = self._kept.pop(constraint, None) or self._try(constraint)
            self._kept[constraint] = found
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        if isinstance(found, InvalidRequest):
            raise InvalidRequest(str(found), found.param)
        return found

    def _try(self, constraint: Constraint) -> Language | InvalidRequest:
        # A refusal is kept, too: asking again must not cost the time again.
        try:
            return self._compile(constraint)
        except InvalidRequest as refusal:
            return refusal

    def _compile(self, constraint: Constraint) -> Language:
        check_burden(constraint)
        matcher = self._match(constraint)
        assembled, automaton, why = self._lift(constraint)
        if automaton is not None:
            shortest, is_known = automaton.shortest(self._longest), True
        else:
            shortest, is_known = self._shortest(constraint, matcher, assembled)
        if shortest is None:
            found = "is in it" if is_known else "was found soon enough"
            reason = f"no text of at most {self._longest} tokens {found}"
            raise _refusal(constraint, matcher.get_error() or reason)
        return Language(
            constraint, matcher, self._vocabulary, tuple(shortest), automaton, why, is_known
        )

    def _match(self, constraint: Constraint) -> LLMatcher:
        """What llguidance makes of a constraint; raises InvalidRequest."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=300_000,
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_lexer_states=50_000,
            max_grammar_size=200_000,
            verbose_errors=False,
        )
        matcher = LLMatcher(
            self._vocabulary.backend, grammar_of(constraint), log_level=0, limits=limits
        )
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return matcher

    def _lift(self, constraint: Constraint) -> tuple[Assembled | None, LiftedAutomaton | None, str]:
        """The parts of a regular language and its automaton; None, and why, where there are none,
        or they are too large."""
        assembled = None
        if not self._vocabulary.stops:
            return None, None, ""
        try:
            assembled = parts_of(constraint)
            return assembled, LiftedAutomaton(assembled.determine(), self._vocabulary), ""
        except NotRegular as error:
            return assembled, None, str(error)
        except TooLarge:
            return assembled, None, "its automaton is too large"

    def _shortest(
        self, constraint: Constraint, matcher: LLMatcher, assembled: Assembled | None
    ) -> tuple[list[int] | None, bool]:
        """A text of few tokens, where no automaton knows the shortest, and whether there is none
        shorter.

        Args:
            assembled: the language as parts, where it has them.
        """
        if constraint.kind == "choice":
            return self._shortest_choice(constraint.choices, matcher), True
        whole = assembled if constraint.kind == "regex" else None
        try:
            found = find_fewest(
                whole or short_parts_of(constraint), self._vocabulary.trie, self._longest
            )
            if found is None or keeps_closing(matcher, found):
                return found, whole is not None
        except (NotRegular, TooLarge):
            pass
        return find_shortest(matcher, self._vocabulary, self._longest), False

    def _shortest_choice(self, choices: Sequence[str], matcher: LLMatcher) -> list[int] | None:
        """The choice that takes the fewest tokens, spelled in them."""
        shortest: list[int] | None = None
        for text in sorted(map(str.encode, choices), key=len):
            most = self._longest if shortest is None else len(shortest) - 1
            if self._vocabulary.least(text) > most:
                break
            spelled = self._vocabulary.fewest(text)
            if spelled is not None and len(spelled) <= most and keeps_closing(matcher, spelled):
                shortest = spelled
        return shortest


def parts_of(constraint: Constraint) -> Assembled:
    """A constraint as parts of an automaton over bytes; raises NotRegular, TooLarge."""
    match constraint.kind:
        case "choice":
            return parts_of_choices(constraint.choices)
        case "regex":
            return parts_of_regex(_without_anchors(constraint.source))
        case "json_schema":
            return parts_of_schema(constraint.source)
    raise NotRegular


def short_parts_of(constraint: Constraint) -> Assembled:
    """Parts that accept the shortest texts of a schema; raises NotRegular, TooLarge."""
    match constraint.kind:
        case "json_schema":
            return parts_of_schema(constraint.source, ShortestParts)
        case "json_object":
            return parts_of_schema(_ANY_OBJECT, ShortestParts)
    raise NotRegular


def grammar_of(constraint: Constraint) -> str:
    """A constraint in llguidance's words; raises InvalidRequest where it has none."""
    from llguidance import LLMatcher

    try:
        match constraint.kind:
            case "json_schema":
                schema = _BOOLEAN_SCHEMAS.get(constraint.source.strip(), constraint.source)
                return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)  # type: ignore[arg-type]
            case "json_object":
                return LLMatcher.grammar_from_json_schema(_ANY_OBJECT, overrides=_JSON)  # type: ignore[arg-type]
            case "regex":
                return LLMatcher.grammar_from_regex(_without_anchors(constraint.source))
            case "choice":
                escaped = (_REGEX_SPECIAL.sub(r"\\\g<0>", each) for each in constraint.choices)
                return LLMatcher.grammar_from_regex("|".join(f"(?:{each})" for each in escaped))
            case "grammar":
                return LLMatcher.grammar_from_lark(constraint.source)
    except ValueError as error:
        raise _refusal(constraint, str(error)) from error


def _without_anchors(regex: str) -> str:
    """The expression of a whole text says the same without anchors at its ends."""
    regex = regex.removeprefix("^")
    return regex[:-1] if _AT_THE_END.search(regex) else regex


def _refusal(constraint: Constraint, reason: str) -> InvalidRequest:
    sentence = " ".join(reason.split())
    sentence = next((ours for of, ours in _REASONS.items() if of in sentence), sentence)
    if len(sentence) > _MAX_REASON:
        sentence = f"{sentence[: _MAX_REASON - 3]}..."
    return InvalidRequest(f"this {constraint.kind} cannot be kept: {sentence}", "constraint")
