"""Flows small enough to be served in a test: a retraining that holds its decision until told to go on."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from prefect import flow
from prefect.runtime import flow_run
from prefect.schedules import Interval

from flows.serve_flows import deployment, serve
from monitoring.database import DECISIONS, connect
from pipelines.settings import Settings, load_settings


def until(what: Callable[[], Any], patience_s: float = 30.0) -> Any:
    """What `what` returns once that is true."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {patience_s} s"
        time.sleep(0.1)
    return found


def new_decision(settings: Settings, state: str = "waiting", **values: Any) -> sa.Row[Any]:
    """A decision's row, as the alarm would write it."""
    row = {"cause": "drift", "evidence": {"from_seq": 0}, "created_at": 1.0, "updated_at": 1.0, "attempts": 0}
    with connect(settings.database_url).begin() as connection:
        made = connection.execute(sa.insert(DECISIONS).values(row | {"state": state} | values))
        assert made.inserted_primary_key
        number = int(made.inserted_primary_key[0])
    return row_of(settings, number)


def row_of(settings: Settings, decision: int) -> sa.Row[Any]:
    with connect(settings.database_url).begin() as connection:
        return connection.execute(sa.select(DECISIONS).where(DECISIONS.c.decision == decision)).one()


@flow(name="retrain", persist_result=False)
def retrain(task: str = "digits", decision: int | None = None, cause: str = "manual") -> None:
    """Claims its decision, then works until the file `go` appears."""
    settings = load_settings(task)
    path = settings.folder / "log.db"
    with sqlite3.connect(path, timeout=30) as connection:
        connection.execute(
            "update decisions set state='running', flow_run_id=? where decision=? and state in ('waiting','emitted')",
            (str(flow_run.id), decision),
        )
    with (settings.folder / "runs").open("a") as stream:
        stream.write(f"{decision!r} {cause} {os.getpid()} {time.time()}\n")
    while not (settings.folder / "go").exists():
        time.sleep(0.1)
    with sqlite3.connect(path, timeout=30) as connection:
        connection.execute("update decisions set state='done' where decision=?", (decision,))


@flow(name="monitor", persist_result=False)
def monitor(task: str = "digits") -> None:
    with (Path(load_settings(task).folder) / "looks").open("a") as stream:
        stream.write("looked\n")


def main() -> None:
    settings = load_settings()
    every = Interval(timedelta(seconds=settings.retrain.monitor_interval_s))
    serve(settings, [deployment(settings, retrain, on_drift=True), deployment(settings, monitor, every)])
