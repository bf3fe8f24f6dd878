"""How fast the service answers although it logs durably, and whether it forgets when it is killed.

    python benchmarks/serving.py [--quick] [--task digits]

The same model behind three doors on this machine, load from a second process, in turns (a round of one, then of the
next), so that whatever else the machine does meets all of them: fedloop with its log, `mlflow models serve
--env-manager local`, and a plain FastAPI handler without a log. Single rows as JSON and pictures as PNG. Then fedloop
is killed with -9 under load, again and again, with clients that send what broke once more under its request id: what
was answered must stand in the log, and nothing twice. Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from pipelines import registry, release
from pipelines.registry import Version
from pipelines.settings import Settings, load_settings

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
PACKAGES = ("torch", "mlflow", "fastapi", "uvicorn", "sqlalchemy")
PEERS = ("fedloop", "mlflow", "plain")
FIGURES = ("requests_s", "p50_ms", "p99_ms", "processor_us")


def make_house(folder: Path, task_name: str) -> tuple[Settings, Path]:
    """A home with an untrained champion, and the folder of its weights: speed does not depend on what they are."""
    import numpy as np

    from pipelines.tracking import Run

    settings = load_settings(task_name, home=folder / "home", out=folder / "out")
    settings.apply_environment()
    registered: Version = registry.register(
        settings, parameters=dict(settings.task.build_model().state_dict()), key="bench", tags={},
        figures={"gate.accuracy": 0.5}, summary=None, run_id=Run.start(settings, "training", "bench").run_id,
        example=np.zeros((2, *settings.task.input.shape), dtype=np.uint8),
    )  # fmt: skip
    release.promote(settings, registered.number, "benchmark")
    return settings, registry.fetch(settings, registered.number)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, health: str, log: Path, more: dict[str, str] | None = None) -> Iterator[Any]:
    """A process that answers on its port, and is gone afterwards with all its children."""
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # MLflow calls uvicorn
    environment = os.environ | {"PATH": found, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | (more or {})
    with log.open("ab") as out:
        running = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}{health}", running, log)
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, 9)
        running.wait()


def wait_for(url: str, running: Any, log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            if httpx.get(url, timeout=2, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if running.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"a server did not come up; its log {log} ends with\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def fedloop(settings: Settings, port: int, log: Path) -> Any:
    more = settings.environment() | {"FEDLOOP_PORTS__SERVICE": str(port)}
    return server([sys.executable, "-m", "pipelines.service"], port, "/readyz", log, more)


def processor_s(running: Any) -> float:
    """Processor seconds that a server and its children have used."""
    here = psutil.Process(running.pid)
    times = [each.cpu_times() for each in [here, *here.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def load(**what: Any) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "serving_load.py"), json.dumps(what)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def speed(settings: Settings, weights: Path, folder: Path, rounds: int, seconds: float, task: str) -> dict[str, Any]:
    """Medians over the rounds, of each peer and kind of request."""
    from serving_peers import save_mlflow_picture_model

    found: dict[str, Any] = {}
    uri = f"models:/{settings.model_name}/1"
    pictures = folder / "pictures"
    save_mlflow_picture_model(pictures, weights)
    for kind, mlflow_model in (("row", uri), ("image", str(pictures))):
        with ExitStack() as up:
            ports = {peer: free_port() for peer in PEERS}

            def serve(peer: str, command: list[str], health: str) -> Any:
                port = ports[peer]  # noqa: B023 (used within the turn)
                return up.enter_context(server(command, port, health, folder / f"{peer}.log"))

            mlflow = ["-m", "mlflow", "models", "serve", "-m", mlflow_model, "--env-manager", "local"]
            running = {
                "fedloop": up.enter_context(fedloop(settings, ports["fedloop"], folder / "fedloop.log")),
                "mlflow": serve("mlflow", [sys.executable, *mlflow, "-p", str(ports["mlflow"])], "/ping"),
                "plain": serve(
                    "plain",
                    [sys.executable, str(HERE / "serving_peers.py"), str(ports["plain"]), str(weights)],
                    "/openapi.json",
                ),
            }
            runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in PEERS}
            for turn in range(-1, rounds):  # the first one warms them
                for peer in PEERS:
                    count = int(seconds * (600 if peer == "mlflow" else 4000)) + 100
                    what = {"port": ports[peer], "peer": peer, "kind": kind, "task": task, "pictures": count}
                    before = processor_s(running[peer])
                    long_s = min(seconds, 1.5) if turn < 0 else seconds
                    said = load(**what, seconds=long_s, tag=f"{kind}{peer[0]}{turn}")
                    said["processor_us"] = (processor_s(running[peer]) - before) / said["answered"] * 1e6
                    if turn >= 0:
                        runs[peer].append(said)
                        tell(kind, peer, said)
        found[kind] = {
            peer: {name: median(each[name] for each in said) for name in FIGURES}
            | {"refused": sum(each["refused"] for each in said)}
            for peer, said in runs.items()
        }
    return found


def tell(kind: str, peer: str, said: dict[str, Any]) -> None:
    print(
        f"{kind:6} {peer:8} {said['requests_s']:7.0f}/s  p50 {said['p50_ms']:6.1f} ms  p99 {said['p99_ms']:6.1f} ms  "
        f"processor {said['processor_us']:5.0f} us a request, {said['refused']} refused",
        flush=True,
    )


def kills(settings: Settings, folder: Path, times: int) -> dict[str, int]:
    """Killed under load, so many times: answers that the log does not hold, and requests that it holds twice."""
    from sqlalchemy import func, select

    from models.images import content_hash
    from monitoring.database import PREDICTIONS
    from monitoring.traffic import TrafficLog

    port, answered, broken = free_port(), folder / "answered.json", 0
    taken: dict[str, str] = {}
    log = TrafficLog.open(settings.database_url, settings.images)
    with ExitStack() as up:
        running = up.enter_context(fedloop(settings, port, folder / "fedloop.log"))
        for number in range(times):
            what = {
                "port": port, "peer": "fedloop", "kind": "image" if number % 2 else "row", "task": settings.task_name,
                "seconds": 6.0, "patience_s": 90.0, "tag": f"kill{number}", "answered": str(answered), "pictures": 2000,
            }  # fmt: skip
            command = [sys.executable, str(HERE / "serving_load.py"), json.dumps(what)]
            environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
            before = log.count()
            client = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            while log.count() < before + 50 + 37 * number and client.poll() is None:
                time.sleep(0.005)
            os.killpg(running.pid, 9)
            running.wait()
            running = up.enter_context(fedloop(settings, port, folder / "fedloop.log"))
            said = json.loads(client.communicate()[0])
            taken |= json.loads(answered.read_text())
            broken += said["refused"]
            print(f"kill {number + 1}: {said['answered']} answered in all, {said['refused']} refused", flush=True)
    c = PREDICTIONS.c
    ours = c.request_id.like("kill%")
    with log.engine.connect() as connection:
        kept = dict(connection.execute(select(c.request_id, c.prediction_id).where(ours)).tuples().all())
        twice = connection.execute(
            select(c.request_id).where(ours).group_by(c.request_id).having(func.count() > 1)
        ).all()
        pictures = set(connection.execute(select(c.image_hash).where(ours)).scalars())
        whole = connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    unreadable = sum(content_hash(log.image(name)) != name for name in pictures)
    lost = [name for name, prediction in taken.items() if kept.get(name) != prediction]
    log.close()
    return {
        "times": times, "answered": len(taken), "lost": len(lost), "doubled": len(twice), "refused": broken,
        "pictures_unreadable": unreadable, "database_whole": int(whole),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; nothing is kept")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--kills", type=int, help="how often it is killed (20)")
    parser.add_argument("--only", choices=["speed", "kill"], help="one half; the other half of the results stays")
    arguments = parser.parse_args()
    rounds, seconds, times = (1, 1.5, 1) if arguments.quick else (5, 4.0, 20)
    times = arguments.kills or times
    folder = Path(tempfile.mkdtemp(prefix="fedloop-serving-"))
    try:
        settings, weights = make_house(folder, arguments.task)
        found: dict[str, Any] = {}
        if arguments.only != "kill":
            found = speed(settings, weights, folder, rounds, seconds, arguments.task)
        killed = kills(settings, folder, times) if arguments.only != "speed" else {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def ratios(figure: str, peer: str) -> dict[str, float]:
        return {kind: its["fedloop"][figure] / its[peer][figure] for kind, its in found.items()}

    ratio = {f"{peer}_throughput": ratios("requests_s", peer) for peer in ("mlflow", "plain")}
    ratio |= {f"{peer}_processor": ratios("processor_us", peer) for peer in ("mlflow", "plain")}
    p99 = {peer: ratios("p99_ms", peer) for peer in ("mlflow", "plain")}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept |= {"machine": machine, "versions": {name: version(name) for name in PACKAGES}, "task": arguments.task}
    if found:
        kept |= {"connections": 32, "rounds": rounds, "seconds": seconds, "load_average": os.getloadavg()}
        kept |= {"speed": found, "ratio": ratio, "p99_ratio": p99}
    if killed:
        kept |= {"kill": killed}
    print(json.dumps({"ratio": ratio, "p99_ratio": p99, "kill": killed}, indent=2))
    if not arguments.quick:
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
        print(f"kept in {RESULTS}")


if __name__ == "__main__":
    main()
