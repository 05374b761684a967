"""A chat in the terminal, with slash commands that change the sampler."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from diffusiongpt.cli.main import make_params
from diffusiongpt.cli.watching import show
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest

HELP = """\
/policy NAME      commit policy (without NAME: the model's own)
/steps N          budget of denoising steps
/temperature T    of the token draw, 0 is greedy
/seed N           the same seed gives the same answer
/reset            forget the conversation
/help             this list
/quit             leave"""

_NUMBERS: dict[str, Callable[[str], Any]] = {
    "steps": int,
    "temperature": float,
    "seed": int,
    "policy": str,
}


class Conversation:
    """Reads questions from standard input and shows the answers as they form.

    Args:
        options: fields of GenerationParams for every answer; slash commands change them.
        live: whether to show the canvas, or only the text.
        pace: seconds that each frame stays at least.
    """

    def __init__(
        self,
        engine: Engine,
        options: dict[str, Any],
        *,
        system: str | None,
        live: bool,
        pace: float,
    ) -> None:
        self._engine = engine
        self._options = options
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._opening)
        self._live = live
        self._pace = pace

    def run(self) -> None:
        """Talk until the input ends or /quit."""
        if self._live:
            typer.echo(f"{self._engine.info.name}: ask something; /help lists the commands.")
        while (line := self._read()) is not None:
            line = line.strip()
            if line == "/quit":
                return
            if line.startswith("/"):
                self._obey(line[1:])
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False)
        try:
            return sys.stdin.readline() or None
        except KeyboardInterrupt:
            return None

    def _obey(self, command: str) -> None:
        name, _, value = command.partition(" ")
        if name == "help":
            typer.echo(HELP)
        elif name == "reset":
            self._messages = list(self._opening)
            typer.echo("The conversation is forgotten.")
        elif name in _NUMBERS:
            self._set(name, value.strip())
        else:
            typer.echo(f"There is no command /{name}; /help lists them.")

    def _set(self, name: str, value: str) -> None:
        try:
            setting = _NUMBERS[name](value) if value else None
            make_params(self._engine, {**self._options, name: setting})
        except InvalidRequest as error:
            typer.echo(str(error))
        except ValueError:
            typer.echo(f"/{name} takes a number, got {value!r}.")
        else:
            self._options[name] = setting
            typer.echo(f"{name}: {'as the model says' if setting is None else setting}")

    def _answer(self, question: str) -> None:
        self._messages.append({"role": "user", "content": question})
        try:
            frames = self._engine.stream(self._encode(), make_params(self._engine, self._options))
            answer = show(frames, live=self._live, pace=self._pace)
        except InvalidRequest as error:
            self._messages.pop()
            typer.echo(str(error))
            return
        except KeyboardInterrupt:
            self._messages.pop()
            typer.echo("Stopped.")
            return
        self._messages.append({"role": "assistant", "content": answer})

    def _encode(self) -> list[int]:
        """The conversation's tokens, without its oldest turns where the context is too short."""
        start = len(self._opening)
        while True:
            try:
                ids = self._engine.encode_chat(self._messages)
                self._engine.prepare(ids, make_params(self._engine, self._options))
            except ContextLengthExceeded:
                if len(self._messages) - start < 3:
                    raise
                del self._messages[start : start + 2]
            else:
                return ids
