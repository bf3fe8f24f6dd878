"""The annotation desk on the command line: tokens for people, labels out and in as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import BadInput, Missing

if TYPE_CHECKING:
    from pipelines.federated.store import SiteStore
    from pipelines.settings import Settings

labels = typer.Typer(
    help="Labels out of a site's queue and into it, as CSV or Label Studio JSON.", no_args_is_help=True
)

SiteName = Annotated[str, typer.Argument(help="the site's name, as in `site-1`")]
TaskOption = Annotated[str, typer.Option("--task", help="digits, retina, pneumonia, or your own")]
Format = Annotated[str, typer.Option("--format", help="csv or label-studio")]


def token(
    site: SiteName,
    annotator: Annotated[str, typer.Option(help="whose votes these will be")],
    task: TaskOption = "digits",
    revoke: Annotated[bool, typer.Option("--revoke", help="end all tokens of this person instead")] = False,
) -> None:
    """Make a token that opens the site's desk for one person. It is shown once; only its hash is kept, at the site."""
    from pipelines.federated.tokens import make_token, revoke_tokens

    settings, store = _site(task, site)
    database = store.database
    if revoke:
        typer.echo(f"{revoke_tokens(database, annotator)} of {annotator}'s tokens at {site} ended; the votes stay")
        return
    made = make_token(database, annotator)
    typer.echo(f"{settings.url('service')}/desk?site={site}", err=True)
    typer.echo(made)


@labels.command("export")
def export(
    site: SiteName,
    out: Annotated[Path | None, typer.Option(help="write here instead of to the terminal")] = None,
    format: Format = "csv",
    task: TaskOption = "digits",
) -> None:
    """Every row of the queue with its label, where it has one. Label Studio's JSON holds the pictures themselves."""
    from pipelines.desk import exchange

    settings, store = _site(task, site)
    text = exchange.write(store.database, settings.task.classes, exchange.format_of(format))
    if out is None:
        typer.echo(text, nl=False)
        return
    out.write_text(text)
    if format == "label-studio":
        typer.echo("labelling interface for the Label Studio project:", err=True)
        typer.echo(exchange.interface(settings.task.classes), err=True)


@labels.command("import")
def take_in(
    site: SiteName,
    file: Annotated[Path, typer.Argument(help="CSV with row_id and label, or Label Studio's JSON export")],
    annotator: Annotated[str, typer.Option(help="whose votes these are where the file names nobody")],
    format: Format = "csv",
    task: TaskOption = "digits",
) -> None:
    """Votes from a file. Bad lines are listed with their numbers and good ones taken; again, it changes nothing."""
    from pipelines.desk import exchange

    settings, store = _site(task, site)
    if not file.is_file():
        raise Missing(f"there is no file {file}")
    text = file.read_text(encoding="utf-8-sig")
    taken = exchange.read(
        store.database, settings.task.classes, text, exchange.format_of(format), annotator, trust_names=True
    )
    for sentence in taken.refused:
        typer.echo(sentence, err=True)
    typer.echo(f"{taken.new} new labels, {taken.known} known already, {len(taken.refused)} refused")
    if taken.refused:
        sys.exit(1)


@labels.command("doubt")
def doubt(
    site: SiteName,
    opinions: Annotated[int, typer.Option(min=1, max=2, help="people that must agree")] = 1,
    most: Annotated[int, typer.Option(min=1, help="labels at most at once, the least supported first")] = 50,
    task: TaskOption = "digits",
) -> None:
    """Put labels that the last labelling or diagnosis suspects to be wrong before others than those who gave them."""
    from pipelines.federated.doubts import ask_again, doubts

    _, store = _site(task, site)
    doubted = [each.row_id for each in doubts(store)]
    new = ask_again(store, doubted[:most], opinions)
    typer.echo(f"{len(doubted)} labels at {site} are suspected to be wrong; the desk asks anew about {new} of them")


def _site(task: str, site: str) -> tuple[Settings, SiteStore]:
    from pipelines.gather import site_stores
    from pipelines.settings import load_settings

    settings = load_settings(task)
    known = site_stores(settings)
    if not known:
        raise Missing(f"task {task} has no sites yet; run `fedloop ingest {task}` first")
    if site not in known:
        raise BadInput(f"there is no site {site!r} of task {task}; there are {', '.join(known)}")
    return settings, known[site]
