"""The log database is made and brought up to date on both kinds; what is wrong with its URL is a sentence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from fresh_logs import Databases
from logged_rows import prediction
from postgres import Postgres

from flows.rehearse import _fresh_log
from models.errors import BadInput, Missing
from monitoring import alarm
from monitoring.database import METADATA, PREDICTIONS, connect
from monitoring.traffic import TrafficLog
from pipelines.settings import load_settings

ROW = {
    "prediction_id": "a", "site": "site-1", "at": 5.0, "model_version": 1, "image_hash": "0" * 32, "prediction": 0,
    "confidence": 1.0, "probabilities": [1.0], "brightness": 0.0, "contrast": 0.0, "sharpness": 0.0,
    "saturation": 0.0, "noise": 0.0,
}  # fmt: skip


def test_a_log_of_an_older_version_gets_what_has_come_since_and_keeps_its_rows(
    databases: Databases, tmp_path: Path
) -> None:
    with databases.url() as url:
        old = connect(url)
        with old.begin() as connection:
            connection.exec_driver_sql("DROP INDEX predictions_image")
            connection.exec_driver_sql("DROP TABLE aggregates")
            for column in ("logged_at", "picture_bytes"):
                connection.exec_driver_sql(f"ALTER TABLE predictions DROP COLUMN {column}")
            left_out = {"logged_at", "picture_bytes"}
            columns = [sa.column(c.name, c.type) for c in PREDICTIONS.c if c.name not in left_out | {"seq"}]
            connection.execute(sa.insert(sa.table("predictions", *columns)), ROW)
        old.dispose()
        log = TrafficLog.open(url, tmp_path)
        frame = log.between(0, 10)
        assert frame.loc[0, ["prediction_id", "logged_at"]].tolist() == ["a", 5.0]  # `at` stands for it
        assert "predictions_image" in {each["name"] for each in sa.inspect(log.engine).get_indexes("predictions")}
        assert sa.inspect(log.engine).has_table("aggregates")
        log.close()


def test_processes_that_start_together_make_the_tables_once(databases: Databases) -> None:
    with databases.url() as url, ThreadPoolExecutor(6) as pool:
        engines = list(pool.map(connect, [url] * 6))
        assert set(sa.inspect(engines[0]).get_table_names()) >= set(METADATA.tables)
        for engine in engines:
            engine.dispose()


def test_evidence_that_is_not_a_number_is_kept_as_nothing(databases: Databases) -> None:
    with databases.url() as url:
        engine = connect(url)
        evidence = {"share": float("nan"), "columns": {"noise": [1.0, float("inf")]}}
        assert alarm.record(engine, "drift", evidence, 0.0, alarm.AlarmPolicy()) is not None
        assert alarm.decisions(engine)[0].evidence == {"share": None, "columns": {"noise": [1.0, None]}}
        engine.dispose()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("no url at all", "cannot be read"),
        ("postgresql:/localhost/log", "cannot be read"),
        ("mysql://root@localhost/log", "SQLite or PostgreSQL, not in 'mysql'"),
        ("postgresql+asyncpg://localhost/log", "SQLite or PostgreSQL, not in 'postgresql\\+asyncpg'"),
    ],
)
def test_a_url_that_can_be_no_log_is_refused_with_an_example(url: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"{sentence}.*postgresql\\+psycopg://user:password@host/database"):
        connect(url)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"localhost:1/log does not answer \(.*refused.*FEDLOOP_LOG_URL") as refused:
        connect("postgres://somebody:secret@localhost:1/log")
    assert "secret" not in str(refused.value)
    (tmp_path / "log.db").write_text("this is no database" * 100)
    with pytest.raises(Missing, match="not a database"):
        connect(f"sqlite:///{tmp_path}/log.db")
    (tmp_path / "file").touch()
    with pytest.raises(Missing, match="cannot be made"):
        connect(f"sqlite:///{tmp_path}/file/log.db")


def test_tasks_and_stages_share_a_postgresql_and_no_row(server: Postgres, tmp_path: Path) -> None:
    settings = [load_settings(home=tmp_path, stage=stage, log_url=server.url) for stage in ("live", "rehearsal")]
    live, rehearsal = (TrafficLog.open(each.database_url, tmp_path) for each in settings)
    rehearsal.record([prediction(0)])
    assert (live.count(), rehearsal.count()) == (0, 1)
    live.record([prediction(1)])
    rehearsal.close()
    for kept in (1, 0):
        _fresh_log(settings[1])  # the next rehearsal begins with an empty log, and the one before is kept
        again = TrafficLog.open(settings[1].database_url, tmp_path)
        assert again.count() == 0
        with again.engine.connect() as connection:
            before = connection.exec_driver_sql("SELECT count(*) FROM fedloop_digits_rehearsal_previous.predictions")
            assert before.scalar() == kept
        again.close()
    assert live.count() == 1
    with live.engine.begin() as connection:
        for schema in ("fedloop_digits", "fedloop_digits_rehearsal", "fedloop_digits_rehearsal_previous"):
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    live.close()
