"""Automata of regular expressions: they accept what Python's own matcher does, or are refused."""

from __future__ import annotations

import random
import re

import pytest

from diffusiongpt.engine.automaton import Automaton, NotRegular, TooLarge
from diffusiongpt.engine.expression import parts_of_choices, parts_of_regex

LETTERS = "abcxyes no12.-é☃🙂\n_٣@com\U0001f300\u07ff\u0800\ufffd\U00010000"


def accepts(automaton: Automaton, text: str) -> bool:
    state = 1
    for byte in text.encode():
        state = int(automaton.table[state, byte])
    return bool(automaton.accepting[state])


@pytest.mark.parametrize(
    "regex",
    [
        r"[a-c]{2,9}",
        r"yes|no|",
        r"\d+(\.\d{2})?",
        r"é+[☃🙂]",
        r"[^a\d]{1,3}",
        r"\w{1,4}",
        r"[^\w]x?",
        r"[\W\d]*",
        r".*",
        r"(?:a|b)*?c{0,}",
        r"(ab|a)*(ba|b)+",
        r"\s\S*",
        r"[\u0080-\U00010000]+",
        r"(?P<first>a+)(b{2,}|(c|x){,0})".replace("{,0}", "{0,0}"),
        r"[]a]-\-",
        r"",
    ],
)
def test_an_automaton_accepts_what_the_expression_matches(regex: str):
    automaton = parts_of_regex(regex).determine()
    chance = random.Random(regex)
    some = [each for each in LETTERS if re.search(regex, each)] or list(LETTERS)
    for _ in range(1500):
        letters = chance.choice((LETTERS, some))
        text = "".join(chance.choice(letters) for _ in range(chance.randrange(6)))
        assert accepts(automaton, text) == bool(re.fullmatch(regex, text)), text


def test_every_character_has_its_bytes():
    automaton = parts_of_regex(r"[ \u0085-\uE010\U0001F000-\U00020000]").determine()
    for code in (*range(0x900), *range(0xD700, 0xE100), *range(0xFFF0, 0x20010, 3)):
        if not 0xD800 <= code < 0xE000:
            inside = code == 32 or 0x85 <= code <= 0xE010 or 0x1F000 <= code <= 0x20000
            assert accepts(automaton, chr(code)) == inside


@pytest.mark.parametrize("character", ["²", "\x1c", "\u0300", "Ⓐ"])
def test_what_syntaxes_disagree_about_is_never_written(character: str):
    for regex in (r"\w", r"\W") if character != "\x1c" else (r"\s", r"\S"):
        assert not accepts(parts_of_regex(regex).determine(), character)


@pytest.mark.parametrize(
    "regex",
    [
        "[[:alpha:]]",
        "[a&&b]",
        "[a[b]]",
        r"[\][a]]",
        "a++",
        "(?i)a",
        "(?i:a)",
        r"\ba",
        r"\pL",
        r"(a)\1",
        "(?=a)a",
        "a{2}{3}",
        "(" * 2000 + ")" * 2000,
    ],
)
def test_what_is_read_in_two_ways_or_not_regular_is_left_out(regex: str):
    with pytest.raises(NotRegular):
        parts_of_regex(regex).determine()


def test_a_large_automaton_is_left_out():
    for regex in (r"\w{1,40}", r"(a|b)*a(a|b){12}", r"(a{1000}){1000}"):
        with pytest.raises(TooLarge):
            parts_of_regex(regex).determine()


def test_choices_are_taken_as_they_are():
    choices = ["", "the cat", "a\nb", "(x|y)*", "é🙂"]
    automaton = parts_of_choices(choices).determine()
    for each in (*choices, "x", "the", "é"):
        assert accepts(automaton, each) == (each in choices)
