"""Flows small enough to be served in a test: a retraining that holds its decision until somebody ends it.

Nothing heavy is imported here: every run of a flow is a process that pays for it.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run
from prefect.schedules import Interval

from monitoring import alarm
from monitoring.database import connect


@flow(name="retrain", persist_result=False)
def retrain(task: str = "digits", decision: int | None = None, cause: str = "manual") -> None:
    """Claims its decision, then works without an end."""
    folder = Path(os.environ["FEDLOOP_HOME"], os.environ["FEDLOOP_STAGE"], task)
    engine = connect(f"sqlite:///{folder / 'log.db'}")
    if decision is not None and not alarm.claim(engine, decision, str(flow_run.id)):
        return
    with (folder / "runs").open("a") as stream:
        stream.write(f"{(decision, cause)!r}\n")
    time.sleep(600)


@flow(name="monitor", persist_result=False)
def monitor(task: str = "digits") -> None:
    """Looks at nothing."""


def main() -> None:
    from flows.serve_flows import deployment, serve
    from pipelines.settings import load_settings

    settings = load_settings()
    every = Interval(timedelta(seconds=settings.retrain.monitor_interval_s))
    serve(settings, [deployment(settings, retrain, on_drift=True), deployment(settings, monitor, every)])
