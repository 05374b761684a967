"""Structured logs as JSON lines on standard error; no prompt and no answer is ever in them."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

logger: structlog.stdlib.BoundLogger = cast(
    "structlog.stdlib.BoundLogger", structlog.get_logger("diffusiongpt")
)


class _StandardError(io.TextIOBase):
    """Whatever standard error is now; nobody's answer fails because no one reads the log."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure_logging(level: str) -> None:
    """Write log lines from `level` on, with the time and the request's id."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _StandardError())),
        cache_logger_on_first_use=False,
    )


def _number(level: str) -> int:
    numbers: dict[str, Any] = logging.getLevelNamesMapping()
    return int(numbers[level.upper()])
