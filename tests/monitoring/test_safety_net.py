"""Answered means logged, once, while the database comes and goes and the service is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from fresh_logs import Databases, fresh_log
from logged_rows import NOW, held, prediction
from postgres import Postgres

from models.errors import BadInput
from monitoring import safety_net
from monitoring.database import PREDICTIONS
from monitoring.engines import engine_for
from monitoring.safety_net import SafetyNet
from monitoring.traffic import Conflict, Label, TrafficLog, UnknownPrediction

NEVER_S = 1000.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database counts as away after a moment, and only the test merges."""
    monkeypatch.setattr(safety_net, "PATIENCE_S", 1.0)
    monkeypatch.setattr(safety_net, "RETRY_S", NEVER_S)


@contextmanager
def net_over(url: str, folder: Path) -> Iterator[SafetyNet]:
    net = SafetyNet(TrafficLog(engine_for(url), folder / "images"), folder / "spool")
    net.prepare()
    yield net
    net.close()
    net.log.close()


def merged(net: SafetyNet) -> int:
    """The database is there again; on a busy machine it may still take longer than the test's patience."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return net.merge()
        except OSError:
            if time.monotonic() > deadline:
                raise


def requests_of(log: TrafficLog) -> list[str]:
    """In the order of seq."""
    return log.between(0, 10**9)["request_id"].tolist()


def test_while_the_database_is_held_rows_are_spooled_and_then_merged_in_order_and_once(
    databases: Databases, tmp_path: Path
) -> None:
    rows = [prediction(number) for number in range(40)]
    with databases.url() as url, net_over(url, tmp_path) as net:
        net.record(rows[:5])
        with held(url):
            began = time.monotonic()
            for number in range(5, 30):
                net.record(rows[number : number + 1])
            assert time.monotonic() - began < 15  # it waits for the first alone
            assert net.trouble
            assert net.said["spool_bytes"] == net.spool.size_bytes() > 0
            with pytest.raises(OSError):
                net.merge()
            assert net.trouble
        net.record(rows[30:31])  # nobody has told it yet that the database is back
        assert merged(net) == 26
        assert net.trouble is None
        net.record(rows[31:])
        assert merged(net) == 0
        assert requests_of(net.log) == [f"r-{number}" for number in range(40)]
        assert net.spool.segments() == []
        assert net.log.image(rows[20].image_hash) == rows[20].png
        assert (net.spooled, net.merged, net.refused) == (26, 26, 0)


def test_a_service_that_starts_without_its_database_spools_and_makes_the_tables_later(
    server: Postgres, tmp_path: Path
) -> None:
    with Databases(server.url).url() as url:
        server.stop()
        with net_over(url, tmp_path) as net:
            assert net.trouble
            net.record([prediction(1)])
            server.start()
            assert merged(net) == 1
            assert requests_of(net.log) == ["r-1"]
            server.stop()  # a connection that is open breaks
            net.record([prediction(2)])
            server.start()
            assert merged(net) == 1
            net.record([prediction(3)])
            assert requests_of(net.log) == ["r-1", "r-2", "r-3"]


def test_a_database_that_hangs_costs_one_batch_its_patience_and_no_row(server: Postgres, tmp_path: Path) -> None:
    with Databases(server.url).url() as url, net_over(url, tmp_path) as net:
        net.record([prediction(0)])
        assert server.process is not None
        hung = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
        for process in hung:
            process.suspend()
        try:
            began = time.monotonic()
            for number in range(1, 10):
                net.record([prediction(number)])
            assert time.monotonic() - began < 6
        finally:
            for process in hung:
                process.resume()
        merged(net)
        # The hung batch went in when the server woke up, and was spooled as well.
        assert sorted(requests_of(net.log)) == [f"r-{number}" for number in range(10)]


def test_a_label_for_a_spooled_row_is_joined_when_it_is_merged_and_others_are_refused_meanwhile(
    databases: Databases, tmp_path: Path
) -> None:
    before, spooled = prediction(0), prediction(1)
    with databases.url() as url, net_over(url, tmp_path) as net:
        net.record([before])
        with held(url):
            net.record([spooled])
            early = Label(spooled.prediction_id, 3, "clinic", NOW)
            assert net.label_all([early, early]) == ["stored", "already"]
            assert net.label_all([early]) == ["already"]
            with pytest.raises(Conflict, match="3 before, and 4 now"):
                net.label_all([Label(spooled.prediction_id, 4, "clinic", NOW)])
            for other in ([Label(before.prediction_id, 3, "clinic", NOW)], [early, Label("nobody", 3, "clinic", NOW)]):
                with pytest.raises(OSError):
                    net.label_all(other)
        merged(net)
        frame = net.log.between(0, 10)
        assert frame["label"].isna().tolist() == [True, False]
        assert net.label_all([early, Label(before.prediction_id, 5, "clinic", NOW)]) == ["already", "stored"]
        assert net.log.between(0, 10)["label"].tolist() == [5, 3]
        with pytest.raises(UnknownPrediction):
            net.label_all([Label("nobody", 3, "clinic", NOW)])


def test_a_row_that_no_database_takes_is_refused_at_once_or_set_aside_and_holds_up_no_other(tmp_path: Path) -> None:
    broken = prediction(1)
    object.__setattr__(broken, "confidence", None)
    with fresh_log() as log:
        url = str(log.engine.url)
        with net_over(url, tmp_path) as net:
            with pytest.raises(sa.exc.IntegrityError):
                net.record([prediction(0), broken])
            assert net.trouble is None
            with held(url):
                net.record([prediction(0), broken, prediction(2)])
            merged(net)
            assert requests_of(net.log) == ["r-0", "r-2"]
            assert net.refused == 1
            assert broken.prediction_id in (tmp_path / "spool" / "refused.jsonl").read_text()


def test_a_name_that_is_no_picture_is_no_trouble_of_the_database(tmp_path: Path) -> None:
    wrong = prediction(1)
    object.__setattr__(wrong, "image_hash", "../etc")
    with fresh_log() as log, net_over(str(log.engine.url), tmp_path) as net:
        with pytest.raises(BadInput):
            net.record([wrong])
        assert net.trouble is None


def test_where_neither_database_nor_spool_takes_a_row_nothing_is_promised(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the spool should be")
    with fresh_log() as log, net_over(str(log.engine.url), tmp_path) as net:
        with held(str(log.engine.url)), pytest.raises(OSError):
            net.record([prediction(0)])
        net.record([prediction(1)])  # the database is back before anybody has merged
        assert "r-1" in requests_of(net.log)


def _serve(url: str, folder: Path, first: int, acknowledged: Path) -> None:
    """Log rows for ever, and write down what has been promised."""
    safety_net.PATIENCE_S, safety_net.RETRY_S = 0.2, 0.02
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with net_over(url, folder) as net:
        for number in range(first, first + 100_000, 3):
            net.record([prediction(number + i) for i in range(3)])
            os.write(file, b"".join(b"r-%d\n" % (number + i) for i in range(3)))


def test_two_replicas_that_are_killed_while_the_database_comes_and_goes_lose_and_double_nothing(
    databases: Databases, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    acknowledged = tmp_path / "acknowledged"
    spooling = 0
    with databases.url() as url:
        for life in range(3):
            replicas = [
                context.Process(target=_serve, args=(url, tmp_path, (life * 2 + each) * 1_000_000, acknowledged))
                for each in range(2)
            ]
            for replica in replicas:
                replica.start()
            for _ in range(3):
                time.sleep(0.3)
                with held(url):
                    time.sleep(0.5)
                    spooling += len(list((tmp_path / "spool").glob("*.spool")))
            for replica in replicas:
                assert replica.pid is not None
                os.kill(replica.pid, signal.SIGKILL)
                replica.join()
        assert spooling > 0
        with net_over(url, tmp_path) as net:
            merged(net)
            promised = acknowledged.read_text().split()
            assert len(promised) == len(set(promised)) > 100
            logged = requests_of(net.log)
            assert set(promised) <= set(logged)
            assert len(logged) == len(set(logged))
            with net.log.engine.connect() as connection:
                assert connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS)).scalar() == len(logged)
