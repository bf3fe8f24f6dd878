"""What the terminal shows: one line per step with the seconds since the start, and what another process' log says."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

# Into a pipe or a log rich would wrap at 80 columns, which the tables do not fit.
CONSOLE = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
_START = time.monotonic()
MARK = "fedloop | "
"""Begins the part of a log line that is meant for people; `tell_log` writes it, `narrate` looks for it."""


def say(line: str) -> None:
    """One line of progress."""
    what, colon, rest = line.partition(":")
    if colon and " " not in what.strip():
        line = f"[bold]{what:>9}[/bold]{rest}"
    CONSOLE.print(f"[dim]{time.monotonic() - _START:6.1f} s[/dim]  {line}")


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def tell_progress() -> None:
    """Show what the steps say of themselves (logger `fedloop`) on this terminal."""
    logger = logging.getLogger("fedloop")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Teller) for handler in logger.handlers):
        logger.addHandler(_Teller())
    logger.propagate = False


def tell_log() -> None:
    """In a flow's own process: write the steps to its log, marked so that `narrate` finds them elsewhere."""
    logger = logging.getLogger("fedloop")
    if not logger.handlers or logger.propagate:
        logger.setLevel(logging.INFO)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(MARK + "%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


@contextmanager
def narrate(log: Path) -> Iterator[None]:
    """Repeat here the steps that another process writes to its log, as long as the block lasts."""
    done = threading.Event()
    offset = log.stat().st_size if log.exists() else 0

    def follow() -> None:
        position = offset
        while True:
            last = done.is_set()
            if log.exists():
                with log.open(encoding="utf-8", errors="replace") as file:
                    file.seek(position)
                    for line in file:
                        if MARK in line:
                            say("  " + line.split(MARK, 1)[1].strip())
                    position = file.tell()
            if last:
                return
            done.wait(0.3)

    thread = threading.Thread(target=follow, daemon=True, name="narrator")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
