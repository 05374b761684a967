"""Languages that are meant to take long: what a client might send to stall a server.

Each is one of a kind at a size at which it took seconds, or would: repeats of repeats, expressions
that explode, schemas that are wide, deep, or combine, grammars that double, lists of long texts.
"""

from __future__ import annotations

import json
from functools import reduce
from random import Random
from typing import Any

TEXT: Any = {"type": "string"}


def hostile_languages() -> dict[str, tuple[str, str]]:
    """By name the kind of a constraint and its source."""
    cases = {f"regex: {name}": ("regex", source) for name, source in _regexes().items()}
    for name, schema in _schemas().items():
        cases[f"schema: {name}"] = ("json_schema", json.dumps(schema))
    cases |= {f"grammar: {name}": ("grammar", source) for name, source in _grammars().items()}
    for name, choices in _choices().items():
        cases[f"choice: {name}"] = ("choice", json.dumps(choices))
    return cases


def _regexes() -> dict[str, str]:
    han = "".join(map(chr, range(0x4E00, 0x9000, 2)))
    wide = [f"[{chr(0x100 + i)}-{chr(0x5000 + i)}]" for i in range(20_000)]
    return {
        "repeats of repeats": "(a{1000}){1000}",
        "four levels of repeats": "((((a{30}){30}){30}){30})",
        "repeats within bounds": "((a{1,100}b?){1,100}c?){1,100}",
        "one letter": "a" * 200_000,
        "letters that may be missing": "a?" * 130_000,
        "a group that may be missing": "(?:a?){2500}",
        "characters that may be missing": "[ -~]?" * 40_000,
        "so many characters": "(?:[ -~]?){1000}",
        "a long word": r"\w{1,1000}",
        "a word of a length": r"\w{5000}",
        "words": r"(\w{1,50}[^a-c]){30}",
        "letters of any script": r"(\p{L}{1,50}[^a-c]){30}",
        "a letter far from the end": "(a|b)*a(a|b){200}",
        "a letter farther from the end": ".*a.{2000}",
        "a word far from the end": r".*\w.{300}x",
        "a hundred gaps": "(.*a){100}",
        "sixty gaps of words": r"(.*\w){60}",
        "alternatives": "|".join(f"x{i}" for i in range(30_000)),
        "long alternatives": "|".join("abcdefghij" * 20 + str(i) for i in range(1200)),
        "alternatives that repeat": "|".join(f"(a{i})*b" for i in range(20_000)),
        "alternatives anywhere": "|".join(f".*a{i}" for i in range(300)),
        "lengths that add up": "|".join(f"(a{{{i}}}b{{{1000 - i}}})" for i in range(1000)),
        "cycles of primes": "|".join(f"(a{{{p}}})*b" for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)),
        "groups in groups": "(" * 50_000 + "a" + ")" * 50_000,
        "repeated groups in groups": "(" * 200 + "a" + ")*" * 200,
        "upper and lower case": "(?i)([a-z]{1,30} ){1,30}",
        "a class of thousands": f"[{han}]{{1,300}}",
        "all but thousands": f"[^{han}]{{1,300}}",
        "many classes": "".join(wide),
        "many classes that may be missing": "?".join(wide[:300]),
        "a letter, or a million of another": "a{1000000}|b",
        "a letter, or many long ways": "|".join(["b", *(f"{c}a{{60000}}" for c in "cdefghijk")]),
        "a length far off": ".{40000}",
        "digits far off": "[0-9]{30000}",
        "any length": "(.{0,100}x){100}",
        "neither nor": "([^a]*b[^c]*d){50}",
    }


def _schemas() -> dict[str, Any]:
    return {**_wide_schemas(), **_deep_schemas(), **_combined_schemas()}


def _wide_schemas() -> dict[str, Any]:
    def keys(count: int, **words: Any) -> Any:
        return {"type": "object", "properties": {f"p{i}": TEXT for i in range(count)}, **words}

    cases: dict[str, Any] = {
        "any properties": {"properties": {f"p{i}": {} for i in range(15_000)}},
        "values": {"enum": [f"v{i}" for i in range(15_000)]},
        "objects in a list": {"enum": [{"a": i} for i in range(12_000)]},
        "a long constant": {"const": "x y" * 50_000},
        "a wide constant": {"const": [*range(30_000)]},
        "expressions": {
            "type": "object",
            "properties": {
                f"p{i}": {"type": "string", "pattern": f"^[a-z]{{{i + 1}}}$"} for i in range(1500)
            },
            "required": [f"p{i}" for i in range(1500)],
        },
        "formats": {
            "type": "array",
            "prefixItems": [{"type": "string", "format": each} for each in ("uri", "email", "ipv6")]
            * 150,
            "minItems": 450,
        },
        "long names": {
            "type": "object",
            "properties": {"k" * 1000 + str(i): TEXT for i in range(200)},
            "required": ["k" * 1000 + str(i) for i in range(50)],
        },
        "names beside others": {
            "type": "object",
            "properties": {"kkkk" * 10 + str(i): TEXT for i in range(1500)},
            "additionalProperties": {"type": "integer"},
        },
    }
    for count in (300, 1500, 3000):
        cases[f"{count} optional properties"] = keys(count)
        required = [f"p{i}" for i in range(count)]
        cases[f"{count} properties"] = keys(count, required=required, additionalProperties=False)
        cases[f"{count} items"] = {"type": "array", "items": TEXT, "minItems": count}
        cases[f"{count} items of a kind each"] = {
            "type": "array",
            "prefixItems": [{"type": "integer"}] * count,
            "minItems": count,
        }
        cases[f"{count} characters"] = {"type": "string", "minLength": count, "maxLength": 9**6}
        cases[f"{count} cases"] = {"anyOf": [{"required": [f"k{i}"]} for i in range(count)]}
        cases[f"one of {count}"] = {
            "oneOf": [{"properties": {"a": {"const": i}}} for i in range(count)]
        }
    return cases


def _deep_schemas() -> dict[str, Any]:
    def chain(count: int, link: Any) -> Any:
        places = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
        return {"$ref": "#/$defs/d0", "$defs": {**places, f"d{count}": TEXT}}

    links: dict[str, Any] = {
        "references": lambda to: to,
        "arrays": lambda to: {"type": "array", "items": to, "minItems": 1},
        "objects": lambda to: {"type": "object", "properties": {"a": to}, "required": ["a"]},
        "pairs": lambda to: {"type": "array", "prefixItems": [to, to], "minItems": 2},
        "both": lambda to: {"allOf": [to, {**to, "minLength": 1}]},
        "either": lambda to: {"anyOf": [to, to]},
    }
    cases = {
        f"a chain of {count} {name}": chain(count, link)
        for count in (30, 100, 1500)
        for name, link in links.items()
    }
    wide = {f"c{i}": {"anyOf": [{"$ref": "#"}, {"type": "null"}]} for i in range(1000)}
    return {
        **cases,
        "arrays in arrays": reduce(lambda inner, _: {"items": inner}, range(300), TEXT),
        "long arrays in arrays": reduce(
            lambda inner, _: {"type": "array", "items": inner, "minItems": 10}, range(8), TEXT
        ),
        "a wide tree": {"type": "object", "properties": wide, "additionalProperties": False},
        "a wide tree of all": {"type": "object", "properties": wide, "required": [*wide]},
    }


def _combined_schemas() -> dict[str, Any]:
    cases: dict[str, Any] = {
        "an expression that explodes": {"type": "string", "pattern": "(a|b)*a(a|b){20}"},
        "repeats in an expression": {"type": "string", "pattern": "^(a{1000}){1000}$"},
        "an expression and a length": {
            "type": "string",
            "pattern": r"^\w+( \w+)*$",
            "minLength": 100,
            "maxLength": 3000,
        },
        "names by an expression that explodes": {
            "type": "object",
            "patternProperties": {"^(a|b)*a(a|b){15}$": TEXT},
            "additionalProperties": False,
        },
        "a range": {"type": "number", "minimum": -(10**200) - 0.5, "exclusiveMaximum": 10**200},
        "multiples within a range": {
            "type": "integer",
            "multipleOf": 17,
            "minimum": -(10**16),
            "maximum": 10**16,
        },
    }
    for count in (6, 12, 40):
        cases[f"{count} expressions that must match"] = {
            "allOf": [{"type": "string", "pattern": f"a{i}"} for i in range(count)]
        }
        cases[f"{count} choices that must hold"] = {
            "allOf": [
                {"anyOf": [{"properties": {f"a{i}_{j}": {"type": "integer"}}} for j in range(6)]}
                for i in range(count)
            ]
        }
        cases[f"multiples of {7**count}"] = {"type": "integer", "multipleOf": 7**count}
        cases[f"objects of {count} that merge"] = {
            "allOf": [keys_of(f"k{i}_", 100) for i in range(count)]
        }
    primes = (7, 11, 13, 17, 19, 23, 29, 31)
    cases["multiples of many"] = {"type": "integer", "allOf": [{"multipleOf": p} for p in primes]}
    return cases


def keys_of(name: str, count: int) -> Any:
    """An object of so many properties that may be missing."""
    return {"type": "object", "properties": {f"{name}{i}": TEXT for i in range(count)}}


def _grammars() -> dict[str, str]:
    def rules(count: int, start: str, each: str, last: str = "") -> str:
        body = [each.format(i=i, j=i + 1) for i in range(count)]
        return "\n".join([f"start: {start}", *body, last])

    named = [f"r{i}" for i in range(8000)]
    letters = " | ".join(f'"{c}" p "{c}"' for c in "abcdefghijklmnopqrstuvwxyz")
    wide = json.dumps({"type": "object", "properties": {f"p{i}": TEXT for i in range(4000)}})
    return {
        "rules in a row": rules(8000, " ".join(named), 'r{i}: "a{i}"'),
        "rules to choose from": rules(8000, " | ".join(named), 'r{i}: "a{i}"'),
        "a chain of rules": rules(8000, "r0", 'r{i}: r{j} | "b{i}"', 'r8000: "x"'),
        "a chain of groups": rules(2500, "r0", 'r{i}: "a" (r{j} "b"){{2}}', 'r2500: "x"'),
        "a chain of terminals": rules(1500, "T0", 'T{i}: "a" T{j} "b"?', 'T1500: "x"'),
        "doubling": rules(30, "r0", "r{i}: r{j} r{j}", 'r30: "x"'),
        "doubling or not": rules(30, "r0", "r{i}: r{j} r{j} | r{j}", "r30: /[ab]/"),
        "doubling terminals": rules(25, "T0", "T{i}: T{j} T{j}?", "T25: /[a-z]/"),
        "terminals that must match": rules(
            1, "T0", "T{i}: " + " & ".join(f"/.*a{i}.*/" for i in range(24))
        ),
        "terminals that must not": rules(30, "T0", "T{i}: T{j} & ~/.*{i}{i}.*/", "T30: /.*/"),
        "what an expression does not match": "start: T\nT: ~/(?s:.*)(a|b)*a(a|b){18}/",
        "ambiguity": 'start: e\ne: e e e | e e | "a" | ""',
        "repeats of repeats": 'start: a{1,1000}\na: b{1,1000}\nb: "x"',
        "a length far off": "start: a{30000}\na: /[a-z]/",
        "palindromes": f'start: p\np: {letters} | "x"',
        "no end": 'start: a\na: "x" a | "y" a b\nb: b "z"',
        "rules that may be missing": rules(
            1500, " ".join(f"r{i}?" for i in range(1500)), 'r{i}: "x{i}"'
        ),
        "schemas": rules(
            20, " ".join(named[:20]), f"r{{i}}: %json {wide[:0]}" + '{{"items": {{}}}}'
        ),
        "a wide schema": f"start: j\nj: %json {wide}",
        "expressions to choose from": rules(
            300, "(" + " | ".join(f"T{i}" for i in range(300)) + ")*", "T{i}: /[a-z]{{1,30}}{i}/"
        ),
        "words to choose from": rules(
            300, "(" + " | ".join(f"T{i}" for i in range(300)) + ")*", "T{i}: /\\w{{1,30}} {i}/"
        ),
        "a long literal": f'start: "{"ab" * 100_000}"',
        "letters": "start: " + " ".join(['"a"'] * 50_000),
        "groups in groups": "start: " + "(" * 5000 + '"a"' + ")?" * 5000,
    }


def _choices() -> dict[str, list[str]]:
    draw = Random(0)
    return {
        "long texts": [f"ab{i:05}" + "x" * 240 for i in range(1024)],
        "texts that end differently": ["x" * 240 + f"ab{i:05}" for i in range(1024)],
        "two huge texts": ["a" * 125_000, "b" * 125_000],
        "beginnings of each other": ["ab " * i for i in range(1, 400)],
        "texts at random": ["".join(draw.choices("abcdefgh é", k=180)) for _ in range(900)],
        "a huge text of words": ["the cat sat on " * 16_000],
        "one short text": ["x", *(f"ab{i:05}" + "x" * 240 for i in range(1023))],
    }


def random_language(seed: int) -> tuple[str, str]:
    """A language that is put together at random, of parts that tend to take long."""
    draw = Random(seed)
    kind = draw.choice(("regex", "json_schema", "grammar", "choice"))
    if kind == "regex":
        return kind, _random_regex(draw, draw.randint(1, 6))
    if kind == "json_schema":
        return kind, json.dumps(_random_root(draw))
    if kind == "grammar":
        return kind, _random_grammar(draw)
    texts = [_random_text(draw) * draw.choice((1, 9, 99)) for _ in range(draw.choice((1, 30, 900)))]
    return kind, json.dumps([each[: 250_000 // len(texts)] for each in texts])


def _random_text(draw: Random) -> str:
    return "".join(draw.choices('ab{}[]()*+?\\.é😀 "/|-^$\n', k=draw.randint(0, 9)))


def _random_regex(draw: Random, depth: int) -> str:
    atoms = ["a", "b", ".", r"\w", r"\d", "[a-z]", "[^ab]", "é", r"\p{L}", r"\s", "(?s:.)", "ab"]
    if not depth:
        return draw.choice(atoms)
    inner = [_random_regex(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    joined = draw.choice(("", "|", "x")).join(inner)
    count = draw.choice((2, 30, 300, 3000))
    repeat = draw.choice(
        ("", "*", "+", "?", "*?", f"{{{count}}}", f"{{1,{count}}}", f"{{{count},}}")
    )
    times = draw.choice((1, 1, 1, 2, 40))
    return f"({joined}){repeat}" * (times if len(joined) < 2000 else 1)


def _random_root(draw: Random) -> Any:
    names = [f"d{i}" for i in range(draw.choice((0, 2, 20)))]
    schema = _random_schema(draw, draw.randint(1, 4), names)
    if isinstance(schema, dict) and names:
        schema["$defs"] = {name: _random_schema(draw, draw.randint(0, 3), names) for name in names}
    return schema


def _random_schema(draw: Random, depth: int, names: list[str]) -> Any:
    count = draw.choice((0, 1, 7, 300))
    if not depth or draw.random() < 0.1:
        return draw.choice(
            [
                True,
                {"type": "string", "pattern": _random_regex(draw, 2)},
                {"type": "string", "minLength": count, "maxLength": 3 * count},
                {"type": "string", "format": draw.choice(("date", "uri", "email", "ipv6", "uuid"))},
                {"type": "integer", "multipleOf": draw.randint(1, 10 ** draw.randint(1, 8))},
                {"type": "number", "minimum": -count, "exclusiveMaximum": 10**count},
                {"enum": [_random_text(draw) for _ in range(count + 1)]},
                {"$ref": f"#/$defs/{draw.choice(names)}"} if names else {},
            ]
        )
    width = draw.choice((1, 2, 5)) if depth > 1 else draw.choice((1, 5, 60))
    inner = [_random_schema(draw, depth - 1, names) for _ in range(width)]
    properties = {f"p{i}": each for i, each in enumerate(inner)}
    required = draw.sample([*properties], k=draw.randint(0, len(properties)))
    return draw.choice(
        [
            {draw.choice(("anyOf", "oneOf", "allOf")): inner},
            {"type": "array", "items": inner[0], "minItems": count, "maxItems": 2 * count},
            {"type": "array", "prefixItems": inner, "items": inner[0]},
            {"type": "object", "properties": properties, "required": required},
            {"properties": properties, "required": required, "additionalProperties": inner[0]},
            {"type": "object", "patternProperties": {_random_regex(draw, 1): inner[0]}},
        ]
    )


def _random_grammar(draw: Random) -> str:
    count = draw.choice((1, 5, 60))
    names = [f"r{i}" for i in range(count)] + [f"T{i}" for i in range(count)]

    def body(own: int, depth: int, terminal: bool) -> str:
        usable = [f"T{i}" for i in range(own + 1, count)] if terminal else names
        atoms = ['"a"', '"the"', "/[a-z]+/", "/(.*a){3}/", '""', *usable]
        if not depth:
            return draw.choice(atoms)
        parts = [body(own, depth - 1, terminal) for _ in range(draw.randint(1, 4))]
        joined = draw.choice((" ", " | ", " & " if terminal else " ")).join(parts)
        repeat = draw.choice(("", "", "*", "+", "?", f"{{{draw.choice((2, 30, 300))}}}"))
        return f"({joined}){repeat}"

    lines = [f"start: {body(-1, 2, False)}"]
    lines += [f"r{i}: {body(i, draw.randint(0, 2), False)}" for i in range(count)]
    lines += [f"T{i}: {body(i, draw.randint(0, 2), True)}" for i in range(count)]
    return "\n".join(lines)
