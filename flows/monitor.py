"""One look at the live traffic, and a word to Prefect when it calls for a retraining."""

from __future__ import annotations

from prefect import flow

from flows.events import announce
from flows.notifying import tell
from pipelines import abstentions, histogram_watch, watch
from pipelines.settings import load_settings


@flow(name="monitor", flow_run_name="monitor-{task}", persist_result=False, log_prints=True)
def monitor(task: str = "digits", limit: int = 20) -> list[str]:
    """Report the traffic's next windows and announce a decision that has enough new rows; returns what was said."""
    settings = load_settings(task)
    said = []
    for report in watch.look(settings, limit):
        said.append(report.sentence)
        if report.decision is not None:
            said.append(f"alarm: {report.decision.sentence}")
    if settings.monitors.histograms and (counted := histogram_watch.look(settings)) is not None:
        said.append(counted.sentence)
    said += [f"silent: {silence.sentence}" for silence in watch.silent(settings)]
    for decision in watch.ready(settings):
        told = announce(settings, decision)
        said.append(f"decision {decision.decision} is {'announced' if told else 'not announced yet; it waits'}")
    for site, rows in abstentions.to_desks(settings).items():
        said.append(f"{rows} pictures that the model abstained from wait at the desk of {site}")
    said += tell(settings)
    for sentence in said or ["no new window is complete"]:
        print(sentence)  # noqa: T201  Prefect turns it into a line of the run's log
    return said
