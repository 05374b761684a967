"""Draws an answer of the bundled model as it forms: an SVG that moves by itself, no script in it.

python docs/draw_forming.py "Tell me a story about a cat." --seed 1 --out docs/forming.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from diffusiongpt.engine import Engine, Frame, GenerationParams

COLUMNS = 68
CHARACTER, LINE, MARGIN, HEADER = 8.43, 24, 22, 46  # pixels
SECONDS_PER_STEP, PAUSE_SECONDS = 0.16, 4.0
UNSURE, FAIR = 0.3, 0.7
COLOURS = {"sure": "#7ee787", "fair": "#e3b341", "unsure": "#ff7b72"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one position's text on one line."""

    text: str
    line: int
    column: int
    step: int
    confidence: float


def parse_arguments() -> argparse.Namespace:
    """The flags; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Draw an answer while it forms.")
    parser.add_argument("prompt")
    parser.add_argument("--model", default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--policy", default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/forming.svg"))
    return parser.parse_args()


def lay_out(frames: Iterable[Frame]) -> tuple[list[Piece], int, Frame]:
    """Pieces of the final text with the step at which each appeared; the steps; the last frame."""
    shown: dict[int, tuple[str, int, float]] = {}
    last = None
    tick = 0
    for frame in frames:
        tick += bool(frame.tokens)
        for change in frame.set:
            shown[change.position] = (change.text, tick, change.confidence)
        for position in frame.unset:
            shown.pop(position, None)
        last = frame
    if last is None:
        raise ValueError("the engine sent no frame")
    return place([shown[position] for position in sorted(shown)]), tick, last


def place(shares: list[tuple[str, int, float]]) -> list[Piece]:
    """Break the text into lines at spaces."""
    characters = [(c, step, sure) for text, step, sure in shares for c in text]
    text = "".join(c for c, _, _ in characters)
    pieces: list[Piece] = []
    line = column = 0
    for index, (character, step, sure) in enumerate(characters):
        word_end = index
        while word_end < len(text) and not text[word_end].isspace():
            word_end += 1
        begins_word = index == 0 or text[index - 1].isspace()
        if begins_word and column + word_end - index > COLUMNS:
            line, column = line + 1, 0
        if character == "\n":
            line, column = line + 1, 0
            continue
        last = pieces[-1] if pieces else None
        if last and (last.line, last.step, last.confidence) == (line, step, sure):
            pieces[-1] = Piece(last.text + character, line, last.column, step, sure)
        else:
            pieces.append(Piece(character, line, column, step, sure))
        column += 1
    return pieces


def draw(prompt: str, pieces: list[Piece], steps: int, footer: str) -> str:
    """The SVG; each step is a class whose masks go and whose text comes at its time."""
    num_lines = max((piece.line for piece in pieces), default=0) + 1
    width = round(COLUMNS * CHARACTER + 2 * MARGIN)
    height = HEADER + num_lines * LINE + 56
    seconds = steps * SECONDS_PER_STEP + PAUSE_SECONDS
    rules = []
    for step in range(1, steps + 1):
        at = 100 * step * SECONDS_PER_STEP / seconds
        rules.append(
            f"@keyframes t{step}{{0%,{at:.2f}%{{opacity:0}}{at + 0.6:.2f}%,100%{{opacity:1}}}}"
            f"@keyframes m{step}{{0%,{at:.2f}%{{opacity:1}}{at + 0.6:.2f}%,100%{{opacity:0}}}}"
            f".t{step}{{animation:t{step} {seconds:.1f}s infinite}}"
            f".m{step}{{animation:m{step} {seconds:.1f}s infinite}}"
        )
    body = [draw_piece(piece) for piece in pieces]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="Masked text filling in">',
            "<style>text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;"
            "white-space:pre}.f{font-size:12px}.m{fill:#30363d;opacity:0}"
            "@media (prefers-reduced-motion:reduce){*{animation:none!important}}",
            *rules,
            "</style>",
            f'<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>',
            f'<text x="{MARGIN}" y="30" fill="#8b949e">&gt; {escape(prompt)}</text>',
            *body,
            f'<text x="{MARGIN}" y="{height - 18}" class="f" fill="#6e7681">'
            f"{escape(footer)}</text>",
            "</svg>\n",
        )
    )


def draw_piece(piece: Piece) -> str:
    """One piece: the mask that goes and the text that comes, coloured by confidence."""
    x = MARGIN + piece.column * CHARACTER
    y = HEADER + piece.line * LINE
    length = len(piece.text) * CHARACTER
    sure = piece.confidence
    colour = COLOURS["sure" if sure >= FAIR else "fair" if sure >= UNSURE else "unsure"]
    return (
        f'<rect class="m m{piece.step}" x="{x:.1f}" y="{y}" width="{length - 1.5:.1f}" '
        f'height="17" rx="3"/><text class="t{piece.step}" x="{x:.1f}" y="{y + 13}" '
        f'textLength="{length:.1f}" fill="{colour}">{escape(piece.text)}</text>'
    )


def main() -> None:
    """Ask the model once and write the picture."""
    options = parse_arguments()
    engine = Engine.from_pretrained(options.model)
    params = GenerationParams(
        max_tokens=options.max_tokens, seed=options.seed, policy=options.policy, watch=True
    )
    prompt = engine.encode_chat([{"role": "user", "content": options.prompt}])
    pieces, steps, last = lay_out(engine.stream(prompt, params))
    usage = last.usage
    footer = ""
    if usage is not None:
        footer = (
            f"{usage.completion_tokens} tokens in {usage.nfe} forwards · seed {options.seed} · "
            "green sure, yellow fair, red unsure"
        )
    options.out.write_text(draw(options.prompt, pieces, steps, footer), encoding="utf-8")


if __name__ == "__main__":
    main()
