"""One pass over the versions on their way to serving: on to the next step, held, settled, or rolled back."""

from __future__ import annotations

from prefect import flow

from flows.console import tell_log
from pipelines import steps
from pipelines.settings import load_settings


@flow(name="release", flow_run_name="release-{task}", persist_result=False)
def release(task: str = "digits") -> list[str]:
    """Returns a sentence for everything that was done; nothing where nothing was due."""
    tell_log()
    return steps.advance(load_settings(task))
