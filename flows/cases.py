"""`fedloop cases`: customers' cases from the command line, one thin function per verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.named_task import TaskName, settings_of

if TYPE_CHECKING:
    from pipelines.case_intake import Line
    from pipelines.settings import Settings

app = typer.Typer(
    help="Customers' cases: pictures with the answer that is expected. A challenger must not lose one.",
    no_args_is_help=True,
)

By = Annotated[str, typer.Option("--by", help="who says so")]


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="PNG or JPEG files", metavar="FILE...", show_default=False)],
    expected: Annotated[str, typer.Option(help="the class that is right for all of them, by name or index")],
    site: Annotated[str | None, typer.Option(help="where they were taken")] = None,
    by: By = "customer",
    note: Annotated[str, typer.Option(help="why they matter")] = "",
    task: TaskName = "digits",
) -> None:
    """Add pictures as cases; the same again changes nothing, another class is a new version of the case."""
    from pipelines.case_intake import Line, reader

    words = {"expected": expected, "site": site, "by": by, "note": note}
    said = {name: value for name, value in words.items() if value}
    _take(settings_of(task), [Line(number, str(file), said, reader(file)) for number, file in enumerate(files, 1)])


@app.command("import")
def import_file(
    source: Annotated[Path, typer.Argument(help="a CSV beside its pictures, a ZIP, or a folder", show_default=False)],
    task: TaskName = "digits",
) -> None:
    """Add many cases: good lines are taken, the others are listed with the reason (and the exit code is 2).

    A CSV has the columns file, expected and, if wanted, site, by, note. A folder or a ZIP holds such a manifest.csv,
    or a folder of pictures for each class.
    """
    from pipelines.case_intake import lines_of

    _take(settings_of(task), lines_of(source))


@app.command("list")
def list_cases(
    state: Annotated[
        Literal["passed", "failed", "unasked", "withdrawn"] | None, typer.Option(help="show only these")
    ] = None,
    task: TaskName = "digits",
) -> None:
    """Show every case, newest first, with what the champion answers to it and, once diagnosed, why it errs."""
    from rich.markup import escape
    from rich.table import Table

    from flows.console import CONSOLE
    from monitoring.cases import page, short
    from pipelines.cases import opened, states
    from pipelines.registry import CHAMPION, by_alias
    from pipelines.serving_model import load_version

    settings = settings_of(task)
    champion = by_alias(settings, CHAMPION)
    model = None if champion is None else load_version(settings, champion)
    with opened(settings) as log:
        number = champion.number if champion else None
        found = states(settings.task, log, page(log.engine, None, None), model.predict if model else None, number)
    served = "no model serves" if champion is None else f"version {champion.number} answers"
    shown = Table(title=f"cases of {settings.model_name}; {served}", title_justify="left")
    for column in ("case", "version", "expected", "answer", "state", "cause", "site", "by", "note"):
        shown.add_column(column)
    for each in (each for each in found if state in (None, each.state)):
        case = each.case
        said = (each.answer or "", each.why or each.state, each.cause or "")
        words = (case.expected, *said, case.site or "", case.submitter, case.note)
        shown.add_row(short(case.case_id), str(case.version), *map(escape, words))
    CONSOLE.print(shown)


@app.command()
def withdraw(
    case_id: Annotated[str, typer.Argument(help="the case, or the first digits of its id", show_default=False)],
    reason: Annotated[str, typer.Option(help="why it counts no more")],
    by: By = "customer",
    task: TaskName = "digits",
) -> None:
    """Withdraw a case: a new version of it says why it counts no more; nothing is deleted."""
    from monitoring import cases
    from pipelines.cases import opened

    with opened(settings_of(task)) as log:
        typer.echo(cases.withdraw(log.engine, case_id, reason, by).sentence)


def _take(settings: Settings, lines: Sequence[Line]) -> None:
    from pipelines.case_intake import take_file
    from pipelines.cases import opened

    with opened(settings) as log:
        done = take_file(settings.task, log, lines)
    for line, taken in done.taken:
        typer.echo(f"{line.file}: {taken.sentence}")
    for line, why in done.refused:
        typer.secho(f"line {line.number}, {line.file}: {why}", err=True, fg="red")
    if done.refused:
        raise typer.Exit(2)
