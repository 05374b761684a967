"""How a command says that it cannot go on."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(message: str, code: int = 1) -> NoReturn:
    """Say one sentence on standard error and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(code)
