"""How much memory the house uses: what its processes hold together, pages that they share counted once."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from pipelines.settings import Settings


MB = 1e6


def memory_mb(settings: Settings) -> float:
    """What every process of this home's house holds now, runs of flows included."""
    from flows.supervision import marked

    return sum(map(_bytes, marked(settings))) / MB


class PeakMemory:
    """The most that this process and all that it started held at one moment, sampled while the block lasts.

    >>> with PeakMemory(every_s=0.01) as memory:
    ...     pass
    >>> memory.peak_mb > 1
    True
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self.every_s, self.peak_mb = every_s, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _sample(self) -> None:
        while not self._done.wait(self.every_s):
            self._look()

    def _look(self) -> None:
        here = psutil.Process()
        self.peak_mb = max(self.peak_mb, sum(map(_bytes, _tree(here))) / MB)


def _tree(root: psutil.Process) -> Iterable[psutil.Process]:
    yield root
    with suppress(psutil.Error):
        yield from root.children(recursive=True)


def _bytes(process: psutil.Process) -> float:
    """Proportional set size where the system tells it (Linux), unique set size (macOS), else resident size."""
    with suppress(psutil.Error, OSError):
        try:
            full = process.memory_full_info()
        except psutil.AccessDenied:
            return float(process.memory_info().rss)
        return float(getattr(full, "pss", 0) or getattr(full, "uss", 0) or full.rss)
    return 0.0
