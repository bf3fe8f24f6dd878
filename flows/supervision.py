"""One supervisord per home: it starts processes, keeps them alive, and is found again by the next command.

What is needed to find it lies in `<home>/run`. Should it be killed, what it left carries a mark in its environment,
and `sweep` ends it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from flows.programs import MARK, Program, environment, log_folder, run_folder
from models.errors import BadInput, Missing
from pipelines.settings import Settings

LOG_BYTES, LOG_FILES = "5MB", 3


@dataclass(frozen=True)
class Info:
    """What the supervisor says of a process. pid 0: it does not run."""

    pid: int = 0
    state: str = "STOPPED"
    uptime_s: float = 0.0


@dataclass(frozen=True)
class Supervisor:
    """A running supervisord, as `<home>/run/house.json` describes it.

    shape: stage, task and addresses; what a second `up` must not differ in.
    owner: pid and start time of the rehearsal that its processes belong to, or None when they stay.
    """

    pid: int
    socket: str
    shape: str
    owner: tuple[int, float] | None

    @property
    def owner_alive(self) -> bool:
        if self.owner is None:
            return False
        with suppress(psutil.Error):
            # The clock may have been set since: a start time moves with it by a little.
            return psutil.pid_exists(self.owner[0]) and abs(started(self.owner[0]) - self.owner[1]) < 5
        return False

    @property
    def mine(self) -> bool:
        return self.owner is not None and self.owner[0] == os.getpid()

    def info(self, name: str) -> Info:
        try:
            found = self._call("getProcessInfo", name)
        except OSError:  # its socket is gone: it ends, or somebody cleaned the temporary folder
            return Info()
        return Info(found["pid"], found["statename"], float(found["now"] - found["start"]) if found["pid"] else 0.0)

    def launch(self, name: str) -> None:
        with suppress(xmlrpc.client.Fault):  # it runs already
            self._call("startProcess", name, False)

    def halt(self, name: str, wait: bool) -> None:
        with suppress(xmlrpc.client.Fault, OSError):  # it does not run
            self._call("stopProcess", name, wait)

    def answers(self) -> bool:
        with suppress(OSError):
            return bool(self._call("getState"))
        return False

    def end(self) -> None:
        """Ask it to stop what still runs and then itself; its socket is not needed for that."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            process.terminate()
            process.wait(60)

    def _call(self, method: str, *arguments: Any) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            return getattr(xmlrpc.client.ServerProxy("http://house", transport).supervisor, method)(*arguments)
        finally:
            transport.close()


def started(pid: int) -> float:
    return float(psutil.Process(pid).create_time())


def shape(settings: Settings) -> str:
    ports = " ".join(f"{name}:{port}" for name, port in settings.ports)
    return f"{settings.stage} {settings.task_name} on {settings.host} {ports}"


def find(settings: Settings) -> Supervisor | None:
    """The supervisor of this home, if it is alive."""
    try:
        record = json.loads((run_folder(settings) / "house.json").read_text())
        owner = record.pop("owner")
        found = Supervisor(**record, owner=tuple(owner) if owner else None)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if _marked(found.pid, settings) else None


def forget(settings: Settings) -> None:
    """Remove what pointed to a supervisor that has ended, however it ended."""
    record = run_folder(settings) / "house.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(Path(json.loads(record.read_text())["socket"]).parent, ignore_errors=True)
    record.unlink(missing_ok=True)


def spawn(settings: Settings, programs: Sequence[Program], owned: bool) -> Supervisor:
    """A new supervisor, which has started nothing yet.

    Raises:
        Missing: it did not start; the message says what it said.
    """
    run, logs = run_folder(settings), log_folder(settings)
    for folder in (run, logs, settings.artifacts, settings.dashboard, settings.folder):
        folder.mkdir(parents=True, exist_ok=True)
    # The path of a unix socket may have some 100 bytes, and a home may lie deep: so it gets a short folder.
    place = Path(tempfile.mkdtemp(prefix="fedloop-", dir="/tmp" if len(tempfile.gettempdir()) > 60 else None))
    config = run / "supervisord.conf"
    config.write_text(_configuration(programs, place / "rpc"))
    errors = logs / "supervisord.err"
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(config)],
            env=environment(settings),
            cwd=run.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is for the command, not for the house
        )
    owner = (os.getpid(), started(os.getpid())) if owned else None
    made = Supervisor(process.pid, str(place / "rpc"), shape(settings), owner)
    (run / "house.tmp").write_text(json.dumps(asdict(made)))
    (run / "house.tmp").replace(run / "house.json")
    deadline = time.monotonic() + 20
    while not made.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            made.end()
            forget(settings)
            raise Missing(f"the supervisor did not start: {errors.read_text().strip() or 'no answer within 20 s'}")
        time.sleep(0.05)
    return made


def sweep(settings: Settings) -> int:
    """End every process that carries this home's mark; returns how many there were."""
    here = psutil.Process()
    spared = {here.pid, *(p.pid for p in here.parents())}
    left = [p for p in marked(settings) if p.pid not in spared]
    for process in left:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=5)[1]:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
    return len(left)


def marked(settings: Settings) -> list[psutil.Process]:
    """Every process of this home's house."""
    return [p for p in psutil.process_iter() if _marked(p.pid, settings)]


@contextmanager
def lock(settings: Settings, patience_s: float = 90.0) -> Iterator[None]:
    """One command at a time changes which supervisor a home has.

    Raises:
        BadInput: another one is still at it.
    """
    path = run_folder(settings) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=patience_s):
            yield
    except Timeout:
        raise BadInput(
            f"another fedloop command has been starting or stopping the house in {path.parent} for {patience_s:.0f} s; "
            "wait for it to end, then try again"
        ) from None


def _marked(pid: int, settings: Settings) -> bool:
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ().get(MARK) == str(settings.home.absolute())
    return False


def _configuration(programs: Iterable[Program], socket: Path) -> str:
    # Paths are relative to the home, where it runs: a % in the home's name would be expanded twice in log paths.
    sections: dict[str, Mapping[str, object]] = {
        "unix_http_server": {"file": socket, "chmod": "0700"},
        "supervisord": {
            "logfile": "logs/supervisord.log",
            "logfile_maxbytes": LOG_BYTES,
            "logfile_backups": LOG_FILES,
            "pidfile": "run/supervisord.pid",
            **({"user": "root"} if os.geteuid() == 0 else {}),  # else it calls it critical that nobody was named
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
    }
    for program in programs:
        sections[f"program:{program.name}"] = {
            "command": shlex.join(program.command),
            "directory": Path.cwd(),
            "autostart": "false",
            "autorestart": "true",
            # Whoever dies within 20 s is tried again a second later, then two, and so on for ever: a full disk
            # ends some day, and nobody should have to restart the house then.
            "startsecs": 20,
            "startretries": 1_000_000,
            "stopasgroup": "true",
            "killasgroup": "true",
            "stopwaitsecs": program.stop_wait_s,
            "redirect_stderr": "true",
            "stdout_logfile": f"logs/{program.log.name}",
            "stdout_logfile_maxbytes": LOG_BYTES,
            "stdout_logfile_backups": LOG_FILES,
        }
    return "\n".join(
        f"[{title}]\n" + "".join(f"{key} = {str(value).replace('%', '%%')}\n" for key, value in values.items())
        for title, values in sections.items()
    )
