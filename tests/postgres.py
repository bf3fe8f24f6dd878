"""A real PostgreSQL for tests: Debian's binaries, a cluster in a folder of its own, a Unix socket and no port."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

WHAT_TO_DO = "PostgreSQL's server is not installed (Debian: `apt-get install postgresql`)"


def binaries() -> Path | None:
    """Where initdb and postgres are, the newest version's; None where it is not installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    there = shutil.which("postgres")
    return Path(there).parent if there else None


@dataclass
class Postgres:
    """A running server; `url` is its database."""

    folder: Path
    binaries: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tester@/postgres?host={quote(str(self.folder))}"

    def start(self) -> None:
        options = ["-c", "fsync=off", "-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}"]
        options += ["-c", "max_connections=60", "-c", "shared_buffers=32MB"]
        self.process = self._popen("postgres", "-D", self.folder / "data", *options)
        while self._popen("pg_isready", "-q", "-h", self.folder, "-t", "30").wait():
            assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """At once, as a crash does it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)

    def initialize(self) -> None:
        made = self._popen(
            "initdb", "-D", self.folder / "data", "-A", "trust", "-U", "tester", "--no-sync", "-E", "UTF8"
        )
        assert made.wait() == 0, (self.folder / "log").read_text()

    def _popen(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self.binaries / program), *map(str, arguments)],
                stdout=log, stderr=log, cwd=self.folder, user=_user(), preexec_fn=_end_with_parent,
            )  # fmt: skip


def _end_with_parent() -> None:
    """A run of tests that is killed leaves no server behind (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _user() -> int | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {each.pw_name: each.pw_uid for each in pwd.getpwall()}
    return names.get("postgres", names.get("nobody"))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that ends with the block; `binaries` must have found it."""
    there = binaries()
    assert there is not None, WHAT_TO_DO
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:  # a socket's path has 107 characters at most
        folder = Path(name)
        if (user := _user()) is not None:
            os.chown(folder, user, -1)
        server = Postgres(folder, there)
        server.initialize()
        server.start()
        try:
            yield server
        finally:
            server.stop()
