"""Processes that train shares of a cohort side by side. Two with one thread each beat one with two on every model of
some size: local SGD is too fine-grained for threads to share.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from models.errors import FedloopError
from pipelines.federated.engines.share import Part, Share, Trainer


class Workers:
    """`processes` in all, this one among them. The others are forked at the first use, with their rows in memory.

    What a worker is sent is pickled; the population and the model are not: a fork shares them.
    """

    def __init__(self, trainer: Trainer, processes: int) -> None:
        self._trainer = trainer
        self.processes = processes
        self._others: list[tuple[multiprocessing.Process, Connection]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def train(self, shares: Sequence[Share]) -> list[Part]:
        """Each share's part, in order; at most `processes` shares."""
        if len(shares) > 1 and not self._others:
            self._fork()
        others = self._others[: len(shares) - 1]
        for (process, connection), share in zip(others, shares[1:], strict=True):
            with _may_be_gone(process):
                connection.send_bytes(_packed(share))
        parts = [self._trainer(shares[0])]
        for process, connection in others:
            with _may_be_gone(process):
                answer = pickle.loads(connection.recv_bytes())  # noqa: S301 (our own child's)
            if isinstance(answer, BaseException):
                raise answer
            parts.append(answer)
        return parts

    def close(self) -> None:
        for process, connection in self._others:
            connection.close()
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
        self._others = []

    def _fork(self) -> None:
        context: Any = multiprocessing.get_context("fork")
        ends: list[Connection] = []
        for _ in range(self.processes - 1):
            ours, theirs = context.Pipe()
            ends.append(ours)
            process = context.Process(target=_serve, args=(self._trainer, theirs, list(ends)), daemon=True)
            process.start()
            theirs.close()
            self._others.append((process, ours))


@contextmanager
def _may_be_gone(process: multiprocessing.Process) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        process.join(timeout=1)
        raise FedloopError(
            f"a worker process ended with code {process.exitcode} in the middle of a round (out of memory?); the same "
            "command again goes on from the last checkpoint"
        ) from error


def _serve(trainer: Trainer, connection: Connection, inherited: list[Connection]) -> None:
    torch.set_num_threads(1)
    for end in inherited:  # else a worker would hold its own pipe open and never see the other end close
        end.close()
    while True:
        try:
            share = pickle.loads(connection.recv_bytes())  # noqa: S301 (our own parent's)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: Part | BaseException = trainer(share)
        except KeyboardInterrupt:
            return
        except Exception as error:
            answer = error
        connection.send_bytes(_packed(answer))


def _packed(value: object) -> bytes:
    """Plain pickle: multiprocessing's own would pass every tensor as a file descriptor."""
    return pickle.dumps(value, protocol=5)
