"""The house under a real supervisor. Small web servers stand where the real ones would, so that a test takes seconds;
MLflow's server is the real one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from watching import until

from flows import processes
from flows.memory import PeakMemory, memory_mb
from flows.ports import free_ports
from flows.processes import House, house, state, stop
from flows.programs import MARK, Program, allowed_hosts, environment, log_folder, programs, run_folder
from flows.supervision import find, marked
from models.errors import BadInput, Missing
from pipelines.settings import Settings, load_settings

WEB = "import http.server as h, sys; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a home whose name has all that a path may have, deeper than a unix socket's path may be."""
    deep = tmp_path / "it's 100%d" / ("deep" * 20) / "home"
    settings = free_ports(load_settings("digits", home=deep, out=tmp_path / "out"))
    yield settings
    for process in marked(settings):
        process.kill()


def web(settings: Settings, name: str, port: int) -> Program:
    address = f"http://127.0.0.1:{port}/"
    command = (sys.executable, "-c", WEB, str(port))
    return Program(name, f"{name} server", command, address, log_folder(settings) / f"{name}.log", port, address)


def small_programs(settings: Settings) -> dict[str, Program]:
    ports = settings.ports
    return {"prefect": web(settings, "prefect", ports.prefect), "mlflow": web(settings, "mlflow", ports.mlflow)}


def small_house(settings: Settings, owned: bool = False, say: Callable[[str], None] = str) -> House:
    """A house of two small web servers under the names of real ones."""
    made = House(settings, say, owned)
    made.programs = small_programs(settings)
    return made


def pids(made: House) -> dict[str, int | None]:
    return {row.name: row.pid for row in made.states()}


def test_a_killed_process_comes_back_and_the_others_do_not_notice(home: Settings) -> None:
    made = small_house(home)
    made.start()
    before = pids(made)
    os.kill(before["prefect"] or 0, signal.SIGKILL)
    until(lambda: pids(made)["prefect"] not in (None, before["prefect"]), 10)
    made.wait()
    assert pids(made)["mlflow"] == before["mlflow"]
    assert {row.state for row in made.states()} == {"up"}
    made.stop()


def test_up_twice_changes_nothing_and_says_so(home: Settings) -> None:
    said: list[str] = []
    made = small_house(home, say=said.append)
    made.start(["prefect"])
    before = pids(made)["prefect"]
    small_house(home, say=said.append).start()
    assert pids(made)["prefect"] == before
    assert pids(made)["mlflow"]
    assert sum("is already up at" in line for line in said) == 1
    assert sum(bool(re.search(r"is up at http://127\.0\.0\.1:\d+/ \(\d+\.\d s\)", line)) for line in said) == 2
    assert made.stop() == 3
    assert made.stop() == 0
    assert marked(home) == []
    assert {row.state for row in state(home)} == {"down"}


def test_a_port_in_use_is_one_clear_sentence_and_nothing_is_started(home: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.ports.mlflow))
        taken.listen()
        with pytest.raises(BadInput) as caught:
            small_house(home).start()
    said = str(caught.value)
    assert f"port {home.ports.mlflow} for the mlflow server" in said
    assert f"process {os.getpid()} has it" in said
    assert "FEDLOOP_PORTS__MLFLOW" in said
    assert "FEDLOOP_PORTS__PREFECT" not in said
    assert marked(home) == []


def test_one_that_keeps_dying_takes_the_start_back_and_shows_its_log(home: Settings) -> None:
    made = small_house(home)
    good = made.programs["mlflow"]
    broken = Program("mlflow", "MLflow server", (sys.executable, "-c", "1 / 0"), "", good.log, good.port, good.health)
    made.programs["mlflow"] = broken
    with pytest.raises(Missing, match=r"(?s)MLflow server ends again and again.*mlflow\.log.*ZeroDivisionError"):
        made.start()
    assert marked(home) == []


def test_what_a_killed_supervisor_left_is_found_and_ended(home: Settings) -> None:
    made = small_house(home)
    # A process that is in a session of its own, as the runs of flows are.
    leave = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
    made.programs["mlflow"] = Program(
        "mlflow", "MLflow", (sys.executable, "-c", leave), "", log_folder(home) / "mlflow.log"
    )
    made.begin()
    until(lambda: len(marked(home)) == 4, 10)
    found = find(home)
    assert found
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: find(home) is None, 5)
    again = small_house(home)
    again.start()  # on the same ports, which the orphans held
    assert len(marked(home)) == 3
    found = find(home)
    assert found
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: find(home) is None, 5)
    assert stop(home) == 2
    assert marked(home) == []
    assert not Path(found.socket).parent.exists()


def test_a_rehearsal_and_up_keep_out_of_each_others_way(home: Settings) -> None:
    up = small_house(home)
    up.start(["prefect"])
    with pytest.raises(BadInput, match=r"the house is up in .* stop it with `make down`"), house(home, ["prefect"]):
        pass
    assert pids(up)["prefect"]
    up.stop()
    rehearsal = subprocess.Popen(["sleep", "600"])  # it stands for another process' rehearsal, which is killed later
    small_house(home, owned=True).start()
    record = run_folder(home) / "house.json"
    owner = [rehearsal.pid, psutil.Process(rehearsal.pid).create_time()]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"owner": owner}))
    for attempt in (small_house(home).start, small_house(home, owned=True).start, lambda: stop(home)):
        with pytest.raises(BadInput, match=rf"a rehearsal is running in .*process {rehearsal.pid}"):
            attempt()
    rehearsal.kill()
    rehearsal.wait()
    small_house(home).start()  # what the killed rehearsal left is no hindrance
    assert len(marked(home)) == 3
    stop(home)
    assert marked(home) == []


def test_a_rehearsals_processes_end_with_it_also_after_ctrl_c_and_kill(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "programs", small_programs)
    for error, number in ((KeyboardInterrupt, signal.SIGINT), (SystemExit, signal.SIGTERM)):
        with pytest.raises(error), house(home, wait=False) as running:
            running.wait()
            assert {row.state for row in running.states()} == {"up"}
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert marked(home) == []


def test_another_task_or_other_ports_in_the_same_home_are_refused(home: Settings) -> None:
    small_house(home).start(["prefect"])
    with pytest.raises(BadInput, match="make down"):
        small_house(free_ports(home)).start()
    stop(home)


@given(
    cron=st.sampled_from(["0 3 * * 0", "*/5 * * * *"]),
    rounds=st.integers(1, 99),
    share=st.floats(0.01, 1),
    host=st.sampled_from(["127.0.0.1", "localhost"]),
    stage=st.sampled_from(["live", "rehearsal"]),
)
@effort(max_examples=25, deadline=None)
def test_every_process_sees_exactly_the_settings_it_was_started_with(
    cron: str, rounds: int, share: float, host: str, stage: str
) -> None:
    given_in_code = load_settings(
        "digits",
        retrain={"cron": cron},
        training={"rounds": rounds},
        labels={"budget_share": share},
        host=host,
        stage=stage,
        home=Path("/tmp/elsewhere"),
        out=Path("/tmp/out"),
    )
    child = environment(given_in_code)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in child.items():
            patch.setenv(name, value)
        assert load_settings() == given_in_code
    assert child[MARK] == "/tmp/elsewhere"


def test_a_tracking_server_of_somebody_else_is_not_started() -> None:
    assert "mlflow" not in programs(load_settings("digits", tracking_uri="http://tracking.example:5000"))
    assert "mlflow" in programs(load_settings("digits"))


def test_everything_binds_to_loopback_unless_told_otherwise() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        for program in programs(load_settings("digits", host=host)).values():
            if "--host" in program.command:
                assert program.command[program.command.index("--host") + 1] == host


@given(st.integers(1, 65535))
def test_mlflow_answers_by_every_name_of_the_machine_when_it_is_shared(port: int) -> None:
    assert {f"127.0.0.1:{port}", f"localhost:{port}"} <= set(allowed_hosts("127.0.0.1", port))
    shared = allowed_hosts("0.0.0.0", port)
    own = {a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET}
    assert {f"{address}:{port}" for address in own} <= set(shared)


def test_the_peak_counts_processes_that_are_gone_again() -> None:
    big = "import time; x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096]); time.sleep(0.6)"
    with PeakMemory(every_s=0.1) as memory:
        before = memory.peak_mb
        subprocess.run([sys.executable, "-c", big], check=True)
    assert memory.peak_mb - before > 250


@pytest.mark.house
def test_mlflows_server_answers_by_both_names_refuses_others_and_stays_small(home: Settings) -> None:
    with house(home, ["mlflow"]):
        for name in ("127.0.0.1", "localhost"):
            path = "api/2.0/mlflow/experiments/get?experiment_id=0"
            found = httpx.get(f"http://{name}:{home.ports.mlflow}/{path}", trust_env=False, timeout=60)
            assert found.status_code == 200
            assert found.json()["experiment"]["artifact_location"] == "mlflow-artifacts:/0"
        refused = httpx.get(home.url("mlflow") + "/", headers={"Host": "evil.example"}, trust_env=False, timeout=60)
        assert refused.status_code == 403
        assert (home.home / "mlflow" / "mlflow.db").exists()  # the registry's own file, not one beside it
        assert memory_mb(home) < 600
    assert marked(home) == []
