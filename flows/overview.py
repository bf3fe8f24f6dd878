"""Tables for the terminal: the processes, the loop's state, an evaluation, and the last rehearsal."""

from __future__ import annotations

import json
import os
import time

from rich.table import Column, Table

from flows.processes import ProcessState
from models.errors import Missing
from monitoring import alarm, moves
from monitoring.database import connect
from pipelines import registry
from pipelines.diagnose import Diagnosis, errors_told
from pipelines.evaluate import Evaluation
from pipelines.federated.causes import NEXT_STEP
from pipelines.report import Summary, table
from pipelines.settings import Settings


def house_table(states: list[ProcessState]) -> Table:
    columns = ("process", "state", "pid", "up for", "address", "log or last error")
    shown = Table(*columns, title="processes", title_justify="left")
    for state in states:
        colour = {"up": "green", "starting": "yellow", "failing": "red"}.get(state.state, "dim")
        since = "" if state.uptime_s is None else f"{state.uptime_s:.0f} s"
        shown.add_row(
            state.title,
            f"[{colour}]{state.state}[/{colour}]",
            str(state.pid or ""),
            since,
            state.url,
            state.error or os.path.relpath(state.log),
        )
    return shown


def loop_table(settings: Settings) -> Table:
    """Champion and challengers, windows and decisions of the task's live stage."""
    title = f"the loop of {settings.model_name}"
    shown = Table(Column(style="bold"), "", title=title, title_justify="left", show_header=False)
    for alias in ("champion", "challenger", "fallback"):
        version = registry.by_alias(settings, alias)
        shown.add_row(alias, f"version {version.number}: {version.tags.get('fedloop.gate', '')}" if version else "none")
    settings.folder.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.database_url)
    for move in [move for move in moves.standing(engine).values() if move.to_step in moves.OPEN]:
        shown.add_row(f"in {move.to_step}", f"version {move.version}, for {(time.time() - move.at) / 60:.0f} minutes")
    windows = alarm.windows(engine)
    odd = int(windows["odd"].sum()) if len(windows) else 0
    shown.add_row("windows", f"{len(windows)} looked at, {odd} odd")
    for decision in alarm.decisions(engine)[-3:]:
        age = (time.time() - decision.created_at) / 60
        what = decision.outcome or decision.evidence.get("sentence", "")
        shown.add_row(f"decision {decision.decision}", f"{decision.state}, {age:.0f} minutes ago: {what}")
    return shown


def moves_table(settings: Settings) -> Table:
    """The last moves of versions on their way to serving, and why."""
    columns = ("when", "version", "from", "to", "reason")
    shown = Table(*columns, title=f"releases of {settings.model_name}", title_justify="left")
    engine = connect(settings.database_url)
    for move in moves.history(engine)[-12:]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(move.at))
        shown.add_row(when, str(move.version), move.from_step or "", move.to_step, move.reason)
    engine.dispose()
    return shown


def evaluation_table(found: Evaluation) -> Table:
    figures = [Column(name, justify="right") for name in ("n", "accuracy", "AUC", "ECE", "champion's accuracy")]
    shown = Table("rows judged", *figures, title=str(found.verdict), title_justify="left")
    before = {} if found.champion is None else {"all": found.champion.overall, **found.champion.sites}
    for name, scores in [("all", found.challenger.overall), *sorted(found.challenger.sites.items())]:
        champion = f"{before[name].accuracy:.3f}" if before else ""
        row = (f"{value:.3f}" for value in (scores.accuracy, scores.auc, scores.ece))
        shown.add_row(name, str(scores.rows), *row, champion)
    for column, quartiles in found.challenger.slices.items():
        for index, (rows, accuracy) in enumerate(quartiles):
            if rows:
                shown.add_row(f"{column}, quartile {index + 1}", str(rows), f"{accuracy:.3f}", "", "", "")
    return shown


def diagnosis_table(found: Diagnosis) -> Table:
    """Errors by cause, at every site and in all, with what each cause calls for."""
    shown = Table(title=f"version {found.version}: {found.sentence}", title_justify="left")
    shown.add_column("cause")
    for column in (*found.answers, "all"):
        shown.add_column(column, justify="right")
    shown.add_column("next")
    for place, (cause, total) in enumerate(found.causes.items()):
        by_site = (str(int(answer.classes[place].sum()) or "") for answer in found.answers.values())
        shown.add_row(cause, *by_site, str(total), NEXT_STEP[cause])
    return shown


def last_rehearsal(settings: Settings) -> Table:
    """The table of the last rehearsal.

    Raises:
        Missing: there was none.
    """
    folder = settings.out.absolute() / settings.task.name
    path = folder / "summary.json"
    if not path.is_file():
        raise Missing(f"there is no rehearsal of {settings.task.name} at {folder}; make one with `fedloop run`")
    values = json.loads(path.read_text())
    for metric in ("accuracy", "auc"):
        values[metric] = {name: float("nan") if v is None else v for name, v in values[metric].items()}
    shown = table(Summary(values), settings.task, f"the last rehearsal, with its picture {folder / 'recovery.png'}")
    rehearsed = settings.model_copy(update={"stage": "rehearsal"})
    if why := errors_told(rehearsed, int(values["registry"]["champion"])):
        shown.add_row("errors", why)
    return shown
