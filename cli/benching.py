"""Shows what a benchmark measured: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

_COLUMNS = ("policy", "tokens", "requests", "tokens/s", "NFE", "TPF", "first", "p50", "p95")


def show_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result of `engine.bench.run_benchmark`."""
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    console = Console()
    console.print(
        f"{result['model']}: {result['parameters']:,} parameters, {result['dtype']} on "
        f"{result['device']}, {result['threads']} threads; {result['requests']} requests at once, "
        f"prompts of {result['prompt_tokens']} tokens, {result['repeats']} rounds",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table(result))
    console.print(
        f"A round: {result['seconds']['median']:.2f} s, {result['forwards']:g} forwards of "
        f"{result['packed_tokens'] / result['forwards']:.0f} tokens, "
        f"{result['head_rows'] / result['forwards']:.0f} rows through the head each.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_describe_share(result), highlight=False, soft_wrap=True)


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for row in result["mix"]:
        table.add_row(row["policy"], str(row["max_tokens"]), *_cells(row))
    if len(result["mix"]) > 1:
        table.add_section()
        table.add_row("all", "", *_cells(result["total"]))
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(row["requests"]),
        f"{row['tokens_per_second']['median']:.0f}",
        f"{row['nfe']:.1f}",
        f"{row['tokens_per_forward']:.2f}",
        *(_seconds(row[key]) for key in ("first_p50_s", "latency_p50_s", "latency_p95_s")),
    )


def _seconds(number: float) -> str:
    return f"{number:.3f} s" if number < 10 else f"{number:.1f} s"


def _describe_share(result: Mapping[str, Any]) -> str:
    ceiling = f"this machine's matrix products ({result['matmul_gflops']:.0f} Gflop/s)"
    if result["matmul_share"] is None:
        return f"The share of {ceiling} is not known for a mixture of experts."
    return f"The linear layers alone are {result['matmul_share']['median']:.1%} of {ceiling}."
