"""The house under supervision: `up`, `down`, `status`, and the part of it that a rehearsal borrows.

In come the settings and the names of processes, out come addresses and states. A process that is killed comes back,
and the others do not notice; every log lies in `<home>/logs`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import httpx
import psutil

from flows.ports import check_ports
from flows.programs import programs, ready_file
from flows.supervision import Info, Supervisor, find, forget, lock, shape, spawn, sweep
from models.errors import BadInput, Missing
from pipelines.settings import Settings

Say = Callable[[str], None]
State = Literal["up", "starting", "failing", "down"]
PATIENCE_S = 180.0  # the slowest of them needs 15 s on two free cores, and a minute and more on busy ones


@dataclass(frozen=True)
class ProcessState:
    """What is known of one process.

    uptime_s: None while it is down; error: its log's last complaint, unless it is up.
    """

    name: str
    title: str
    state: State
    pid: int | None
    url: str
    uptime_s: float | None
    log: Path
    error: str


def _quiet(_: str) -> None:
    return None


class House:
    """The processes of one home.

    owned: they belong to this process (a rehearsal) and `house` ends them with it; else they stay until `stop`.
    """

    def __init__(self, settings: Settings, say: Say = _quiet, owned: bool = False) -> None:
        self.settings, self.say, self.owned = settings, say, owned
        self.programs = programs(settings)
        self._supervisor: Supervisor | None = None
        self._began: dict[str, float] = {}  # when each was started here
        self._untold: set[str] = set()  # which of them are not known to be well yet

    def begin(self, names: Iterable[str] | None = None) -> None:
        """Start processes without waiting for them; `wait` does. Those that run already are left alone.

        Raises:
            BadInput: a port is in use, or the home is occupied by a rehearsal, another task or other ports.
        """
        chosen = self._chosen(names)
        self._occupy(chosen)
        for name in chosen:
            self._launch(name)

    def start(self, names: Iterable[str] | None = None, patience_s: float = PATIENCE_S) -> None:
        """Start processes, each once those that it builds on are well, and wait until all are well.

        Raises:
            BadInput: as in `begin`.
            Missing: one did not come up; the message ends with its log, and what was started here is stopped again.
        """
        chosen = self._chosen(names)
        fresh = self._occupy(chosen)
        running = [name for name in chosen if self._info(name).pid]
        new = [name for name in chosen if name not in running]
        for name in running:
            self.say(f"{self.programs[name].title} is already up at {self.programs[name].page}")
        try:
            for name in new:
                # What needs nobody starts together; what builds on them waits here.
                self.wait([n for n in self.programs[name].after if n in new], patience_s)
                self._launch(name)
            self.wait(chosen, patience_s)
        except BaseException:
            if fresh:
                self.stop()
            elif self._supervisor:
                for name in reversed(new):
                    self._supervisor.halt(name, wait=True)
            raise

    def wait(self, names: Iterable[str] | None = None, patience_s: float = PATIENCE_S) -> None:
        """Wait until these processes, or all that were started here, are well.

        Raises:
            Missing: one keeps dying or needs longer than its patience; the message ends with its log.
        """
        waiting = self._chosen(self._began if names is None else names)
        before, falls = dict.fromkeys(waiting, Info()), dict.fromkeys(waiting, 0)
        deadline = time.monotonic() + patience_s
        while waiting:
            for name in list(waiting):
                info = self._info(name)
                if self._well(name, info.pid):
                    waiting.remove(name)
                    if name in self._untold:
                        self._untold.remove(name)
                        program, spent = self.programs[name], time.monotonic() - self._began[name]
                        self.say(f"{program.title} is up at {program.page} ({spent:.1f} s)")
                    continue
                falls[name] += _fell(before[name], info)
                before[name] = info
                if falls[name] > 1:
                    self._give_up(name, "ends again and again as soon as it has started")
                if info.state == "STOPPED":
                    self._give_up(name, "was stopped by somebody else")
                if time.monotonic() > deadline:
                    self._give_up(name, f"was not ready within {patience_s:.0f} s")
            time.sleep(0.2)

    def states(self) -> list[ProcessState]:
        """One row per process, whether it runs or not."""
        return [self._state(name) for name in self.programs]

    def stop(self) -> int:
        """End every process of this home and what they left; returns how many there were. Idempotent.

        Raises:
            BadInput: they belong to a rehearsal that is still running.
        """
        with lock(self.settings):
            return self._close()

    def _chosen(self, names: Iterable[str] | None) -> list[str]:
        wanted = set(self.programs if names is None else names)
        return [name for name in self.programs if name in wanted]

    def _occupy(self, names: Sequence[str]) -> bool:
        """Have this home's supervisor, with free ports for these names; True when it is a new one."""
        with lock(self.settings):
            found = find(self.settings)
            if found and found.owner and not found.owner_alive:
                found = None  # a rehearsal was killed and left its processes
            if found and found.owner and not found.mine:
                raise BadInput(_occupied(self.settings, found))
            if found and self.owned and not found.mine:
                raise BadInput(
                    f"the house is up in {self.settings.home.absolute()}; stop it with `make down` first, or "
                    "rehearse in another folder with FEDLOOP_HOME=<folder>"
                )
            if found and found.shape != shape(self.settings):
                raise BadInput(
                    f"the house is up in {self.settings.home.absolute()} as {found.shape!r}, not as "
                    f"{shape(self.settings)!r}; stop it with `make down`, then start it again"
                )
            if found is None:
                self._close()
            check_ports(self.settings, [self.programs[n] for n in names if not (found and found.info(n).pid)])
            self._supervisor = found or spawn(self.settings, list(self.programs.values()), self.owned)
            return found is None

    def _close(self) -> int:
        found, ended = find(self.settings), 0
        if found and found.owner_alive and not found.mine:
            raise BadInput(_occupied(self.settings, found))
        if found:
            with suppress(psutil.Error):
                ended = 1 + len(psutil.Process(found.pid).children(recursive=True))
            # The flows first, while the Prefect server can still be told; the rest together.
            found.halt("flows", wait=True)
            for name in self.programs:
                found.halt(name, wait=False)
            found.end()
        ended += sweep(self.settings)
        forget(self.settings)
        ready_file(self.settings).unlink(missing_ok=True)
        self._supervisor = None
        return ended

    def _launch(self, name: str) -> None:
        self._began[name] = time.monotonic()
        self._untold.add(name)
        if self._supervisor:
            self._supervisor.launch(name)

    def _info(self, name: str) -> Info:
        self._supervisor = self._supervisor or find(self.settings)
        return self._supervisor.info(name) if self._supervisor else Info()

    def _well(self, name: str, pid: int) -> bool:
        address = self.programs[name].health
        if not pid:
            return False
        with suppress(OSError, httpx.HTTPError):
            if address is None:
                return ready_file(self.settings).read_text() == str(pid)
            # Without verify=False every call reads all certificates: 0.1 s of processor time, for plain http.
            return httpx.get(address, timeout=5, trust_env=False, verify=False).status_code == 200
        return False

    def _state(self, name: str) -> ProcessState:
        program, info = self.programs[name], self._info(name)
        state: State = "starting" if info.pid else "down"
        if self._well(name, info.pid):
            state = "up"
        if info.state in ("BACKOFF", "FATAL"):
            state = "failing"
        error = _last_error(program.log) if state in ("starting", "failing") else ""
        uptime_s = info.uptime_s if info.pid else None
        return ProcessState(name, program.title, state, info.pid or None, program.page, uptime_s, program.log, error)

    def _give_up(self, name: str, why: str) -> NoReturn:
        program = self.programs[name]
        tail = "\n".join(f"    {line}" for line in _tail(program.log)[-15:])
        raise Missing(f"the {program.title} {why}; its log {program.log} ends with\n{tail}")


def _fell(before: Info, now: Info) -> bool:
    """Whether a process died between two looks at it; it may have lived between them only."""
    return bool(before.pid) if before.pid != now.pid else now.state == "BACKOFF" != before.state


def start(settings: Settings, names: Iterable[str] | None = None, say: Say = _quiet) -> None:
    """`up`: start the processes that do not run yet and wait until all are well (see `House.start`)."""
    House(settings, say).start(names)


def stop(settings: Settings, say: Say = _quiet) -> int:
    """`down`: end the processes of this home, also those that a killed supervisor or rehearsal left."""
    ended = House(settings).stop()
    say(f"stopped {ended} processes" if ended else "nothing was running")
    return ended


def state(settings: Settings) -> list[ProcessState]:
    """`status`: one row per process."""
    return House(settings).states()


@contextmanager
def house(
    settings: Settings, names: Iterable[str] | None = None, say: Say = _quiet, wait: bool = True
) -> Iterator[House]:
    """The processes of a rehearsal: there inside the block, gone after it, also after Ctrl-C or a plain `kill`.

    With wait=False they are only launched; `House.wait` says when they are well, so other work goes on meanwhile.
    """
    mine = House(settings, say, owned=True)
    with ExitStack() as after:
        if threading.current_thread() is threading.main_thread():
            after.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _leave))
        after.callback(_stop_if_mine, mine)
        if wait:
            mine.start(names)
        else:
            mine.begin(names)
        yield mine


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _stop_if_mine(mine: House) -> None:
    found = find(mine.settings)
    if found and found.mine:
        mine.stop()


def _occupied(settings: Settings, found: Supervisor) -> str:
    pid = found.owner[0] if found.owner else found.pid
    return (
        f"a rehearsal is running in {settings.home.absolute()} (process {pid}, {found.shape}); wait for its end or "
        f"end it with Ctrl-C (`kill {pid}`), or use another folder with FEDLOOP_HOME=<folder>"
    )


def _tail(log: Path, size: int = 20_000) -> list[str]:
    with suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - size))
        return [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return []


def _last_error(log: Path) -> str:
    words = ("error", "exception", "critical", "traceback", "refused", "cannot")
    return next((line.strip()[:200] for line in reversed(_tail(log)) if any(w in line.lower() for w in words)), "")
