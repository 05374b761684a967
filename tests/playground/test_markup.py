"""Markdown and code are laid out, whole and at once, and never become HTML."""

from __future__ import annotations

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> [a](javascript:alert(3)) `<b>`"


def test_what_looks_like_html_stays_text(stage):
    stage.generator.frames = None
    stage.generator.texts = [HOSTILE]
    stage.ask(f"{HOSTILE} ?")
    stage.done()
    page = stage.page
    shown = page.locator(".prose")
    expect(shown).to_contain_text("<img src=x onerror=alert(1)><script>alert(2)</script>")
    expect(shown).to_contain_text("a (javascript:alert(3)")
    expect(page.locator(".asked-text")).to_have_text(f"{HOSTILE} ?")
    assert page.locator("#turns img, #turns script, #turns a, #turns b").count() == 0
    page.get_by_label("Show how sure each word was").click()
    assert stage.filled_text(HOSTILE) == HOSTILE


def test_markdown_is_laid_out(stage):
    stage.generator.frames = None
    stage.generator.texts = [
        "# Title\n\nA *soft* **strong** `x<y` ~~no~~.\n\n1. one\n2. two\n   - deep\n\n> said\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n---\n\n```py\nif a < b:\n    pass\n```\n"
    ]
    stage.ask("hi")
    stage.done()
    prose = stage.page.locator(".prose")
    for selector, text in {
        "h3": "Title",
        "em": "soft",
        "strong": "strong",
        "p code": "x<y",
        "s": "no",
        "ol > li:first-child": "one",
        "ol ul li": "deep",
        "blockquote": "said",
        "th:last-child": "b",
        "td:first-child": "1",
        "pre code": "if a < b:\n    pass",
    }.items():
        expect(prose.locator(selector)).to_have_text(text)
    expect(prose.locator("hr")).to_have_count(1)
    stage.shoot("markdown")


# Each made for a search that would try everything at every place.
TEDIOUS = [
    "*",
    "a`",
    "[",
    "_",
    " ",
    "* a",
    "**a ",
    "` a",
    "[a](",
    "#  ",
    "| ",
    "|-",
    "- ",
    "> ",
    "~~a",
]


def test_tedious_texts_are_laid_out_at_once_and_whole(stage):
    counts = stage.page.evaluate(
        """async (parts) => {
            const { renderMarkdown } = await import("./static/markdown.js");
            const start = performance.now();
            const whole = parts.map((part) => part.repeat(20000 / part.length) + "x")
                .filter((text) => renderMarkdown(text).textContent.endsWith("x"));
            return [performance.now() - start, whole.length];
        }""",
        TEDIOUS,
    )
    assert counts[1] == len(TEDIOUS)
    # A tenth of a second on a quiet machine; hours, if one were quadratic twice over.
    assert counts[0] < 30_000


CODE = {
    "py": ('def f(x):  # two\n    return "a # b" + 0x1F', ["def", "return"], "# two"),
    "js": ("const a = 'b//c'; /* d\ne */ return 1.5e3", ["const", "return"], "/* d\ne */"),
    "sql": ("SELECT 'a' FROM t -- all\nWHERE n = 3", ["SELECT", "FROM", "WHERE"], "-- all"),
}


def test_code_is_coloured_and_stays_what_it_is(stage):
    stage.generator.frames = None
    fenced = [f"```{language}\n{code}\n```" for language, (code, *_) in CODE.items()]
    stage.generator.texts = ["\n\n".join(fenced)]
    stage.ask("hi")
    stage.done()
    for index, (code, keywords, comment) in enumerate(CODE.values()):
        block = stage.page.locator(".prose pre code").nth(index)
        expect(block).to_have_text(code)
        expect(block.locator(".code-keyword")).to_have_text(keywords)
        expect(block.locator(".code-comment")).to_have_text(comment)
        expect(block.locator(".code-string")).to_have_count(1)
        expect(block.locator(".code-number")).to_have_count(1)
    stage.shoot("code")


# Each made for a search that would try everything at every place, or for a careless parser.
TEDIOUS_CODE = [
    "'",
    '"',
    "`",
    "\\",
    "'''",
    "/*",
    "*/",
    "#",
    "--",
    "0",
    "1_",
    "a",
    "é",
    "<b>",
    "'\\",
    "0x",
]


def test_no_code_is_lost_or_takes_long(stage):
    seconds, wrong = stage.page.evaluate(
        """async (parts) => {
            const { highlight } = await import("./static/highlight.js");
            const start = performance.now();
            const wrong = [];
            for (const language of ["py", "js", "sql", "none"]) for (const part of parts) {
                const text = part.repeat(20000 / part.length) + "\\nx";
                const node = document.createElement("div");
                node.append(...highlight(text, language));
                const isWhole = node.textContent === text && !node.querySelector(":not(span)");
                if (!isWhole) wrong.push([language, part]);
            }
            return [(performance.now() - start) / 1000, wrong];
        }""",
        TEDIOUS_CODE,
    )
    assert not wrong
    # A fraction of a second on a quiet machine.
    assert seconds < 30


def test_code_can_be_read_by_all(stage, axe):
    stage.page.emulate_media(reduced_motion="reduce")
    stage.generator.frames = None
    stage.generator.texts = [f"```{name}\n{CODE[name][0]}\n```" for name in ("py", "js")]
    stage.ask("hi")
    stage.done()
    for scheme in ("light", "dark"):
        stage.page.emulate_media(color_scheme=scheme)
        stage.expect_accessible(axe)
