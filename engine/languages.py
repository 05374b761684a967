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

from diffusiongpt.engine.automaton import Automaton, NotRegular, TooLarge
from diffusiongpt.engine.closing import find_shortest, keeps_closing
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.expression import automaton_of_choices, automaton_of_regex
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.schema import automaton_of_schema
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
_BOOLEAN_SCHEMAS = {"true": "{}", "false": '{"enum": []}'}
# Where llguidance's words would mislead.
_REASONS = {
    "oneOf constraints": "oneOf needs cases that exclude each other by a type or a constant"
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
    """

    constraint: Constraint
    matcher: LLMatcher
    vocabulary: Vocabulary
    shortest: tuple[int, ...]
    automaton: LiftedAutomaton | None = None
    why_in_order: str = ""

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
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=1_000_000,
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
        automaton, why = self._lift(constraint)
        if automaton is None:
            shortest = self._shortest(constraint, matcher)
        else:
            shortest = automaton.shortest(self._longest)
        if shortest is None:
            found = "was found soon enough" if automaton is None else "is in it"
            reason = f"no text of at most {self._longest} tokens {found}"
            raise _refusal(constraint, matcher.get_error() or reason)
        return Language(constraint, matcher, self._vocabulary, tuple(shortest), automaton, why)

    def _lift(self, constraint: Constraint) -> tuple[LiftedAutomaton | None, str]:
        """The automaton of a regular language; None, and why, where there is none, or it is too
        large."""
        if not self._vocabulary.stops:
            return None, ""
        try:
            return LiftedAutomaton(automaton_of(constraint), self._vocabulary), ""
        except NotRegular as error:
            return None, str(error)
        except TooLarge:
            return None, "its automaton is too large"

    def _shortest(self, constraint: Constraint, matcher: LLMatcher) -> list[int] | None:
        if constraint.kind == "choice":
            return self._shortest_choice(constraint.choices, matcher)
        return find_shortest(matcher, self._vocabulary, self._longest)

    def _shortest_choice(self, choices: Sequence[str], matcher: LLMatcher) -> list[int] | None:
        """The choice that takes the fewest tokens, spelled in them."""
        shortest: list[int] | None = None
        for text in sorted(map(str.encode, choices), key=len):
            if shortest is not None and self._vocabulary.least(text) >= len(shortest):
                break
            spelled = self._vocabulary.fewest(text)
            is_shorter = spelled is not None and (shortest is None or len(spelled) < len(shortest))
            if spelled is not None and is_shorter and keeps_closing(matcher, spelled):
                shortest = spelled
        return shortest


def automaton_of(constraint: Constraint) -> Automaton:
    """A constraint as an automaton over bytes; raises NotRegular, TooLarge."""
    match constraint.kind:
        case "choice":
            return automaton_of_choices(constraint.choices)
        case "regex":
            return automaton_of_regex(_without_anchors(constraint.source))
        case "json_schema":
            return automaton_of_schema(constraint.source)
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
                schema = '{"type": "object"}'
                return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)  # type: ignore[arg-type]
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
