"""A peer's variant as processes that the harness talks to; see protocol.py."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import HERE, PeerMissing, folder, python_of


@dataclass(frozen=True)
class Variant:
    """`copies` > 1: so many independent copies, each with its share of the cohort, whose rates are added."""

    peer: str
    says: str
    arguments: tuple[str, ...] = ()
    copies: int = 1

    @property
    def name(self) -> str:
        return f"{self.peer}: {self.says}"


class PeerFailed(Exception):
    """A peer's process ended or did not answer; the message has the last lines of its log."""


class Worker:
    def __init__(self, variant: Variant, workload: str, make: bool) -> None:
        python = python_of(variant.peer, make)
        script = HERE / f"{variant.peer}.py"
        if not script.exists():
            raise PeerMissing(f"{script.name} does not exist")
        self.variant = variant
        logs = folder() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        plain = "".join(letter if letter.isalnum() else "-" for letter in variant.name)
        self.log = logs / f"{workload}-{plain}.log"
        command = [str(python), str(script), workload, *variant.arguments]
        if variant.copies > 1:
            command += ["--share", str(variant.copies)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.processes = [
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
                )
                for _ in range(variant.copies)
            ]

    def ready(self, timeout: float) -> dict[str, Any]:
        answers = [self._answer(process, timeout) for process in self.processes]
        return answers[0]

    def aggregate(self, path: Path, examples: int, timeout: float) -> dict[str, Any]:
        """By the first copy alone."""
        return self._ask(self.processes[:1], f"aggregate {path} {examples}", timeout)[0]

    def run(self, seconds: float, timeout: float) -> float:
        """Client updates a second."""
        answers = self._ask(self.processes, f"run {seconds}", timeout)
        return sum(answer["updates"] / answer["seconds"] for answer in answers)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None and process.stdin:
                try:
                    process.stdin.write("quit\n")
                    process.stdin.close()
                except BrokenPipeError:
                    pass
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()

    def _ask(self, processes: list[subprocess.Popen[str]], line: str, timeout: float) -> list[dict[str, Any]]:
        for process in processes:
            assert process.stdin
            try:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            except BrokenPipeError as error:
                raise self._failed("ended") from error
        return [self._answer(process, timeout) for process in processes]

    def _answer(self, process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
        assert process.stdout
        end = time.monotonic() + timeout
        if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            raise self._failed(f"no answer in {timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise self._failed(f"ended with {process.wait()}")
        return json.loads(line)

    def _failed(self, what: str) -> PeerFailed:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return PeerFailed(f"{what}; {lines[-1] if lines else 'its log is empty'} ({self.log})")
