"""`fedloop log`: the traffic log from the command line, one thin function per verb."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.named_task import TaskName, settings_of

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="The traffic log: how large it is, Parquet files of it, and what it may forget.", no_args_is_help=True
)


@app.command()
def status(task: TaskName = "digits") -> None:
    """How many rows the log has, since when, how many bytes they take, and what waits in the spool."""
    from pipelines import upkeep

    for sentence in upkeep.describe(settings_of(task)):
        typer.echo(sentence)


@app.command()
def prune(
    task: TaskName = "digits",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    keep_days: Annotated[float | None, typer.Option(min=0, help="instead of the setting log.keep_days")] = None,
    keep_gb: Annotated[float | None, typer.Option(min=0, help="instead of the setting log.keep_gb")] = None,
) -> None:
    """Forget rows beyond the limits log.keep_days and log.keep_gb; the flow `reconcile` does the same on its schedule.

    Only whole windows go that a monitor has reported and that nothing needs; their aggregates stay.
    """
    from pipelines import upkeep

    settings = settings_of(task)
    given = {name: value for name, value in (("keep_days", keep_days), ("keep_gb", keep_gb)) if value is not None}
    settings = settings.model_copy(update={"log": settings.log.model_copy(update=given)})
    said = upkeep.keep_within_limits(settings, dry_run, most_windows=10**9)
    for sentence in said or ["the log is within its limits (log.keep_days, log.keep_gb; 0 is none)"]:
        typer.echo(sentence)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="where the files go", show_default=False)],
    first: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="the first day (UTC)")] = None,
    last: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="the last day (UTC)")] = None,
    site: Annotated[list[str] | None, typer.Option(help="this site only (may be repeated)")] = None,
    task: TaskName = "digits",
) -> None:
    """Write predictions with their labels as Parquet, a folder a site and day; the same again changes nothing."""
    from monitoring.export import export as write
    from pipelines.cases import opened

    with opened(settings_of(task)) as log:
        done = write(log, folder, first and first.date(), last and last.date(), site or ())
    typer.echo(f"{done.rows} rows in {done.files} files under {folder}")


@app.command()
def merge(task: TaskName = "digits") -> None:
    """Bring rows that a service has left in the spool into the database; a running service does so by itself."""
    from pipelines import upkeep

    typer.echo(f"{upkeep.merge(settings_of(task))} rows came out of the spool")
