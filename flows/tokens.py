"""Tokens of the prediction service on the command line."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from flows.named_task import TaskName, log_of

app = typer.Typer(
    help="Who may ask the prediction service: for which site, for what, how fast. From the first one on it needs one.",
    no_args_is_help=True,
)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="what the token is called, such as the site or the program")],
    scope: Annotated[
        list[str], typer.Option(help="predict, feedback, cases, desk, metrics or admin (may be repeated)")
    ],
    site: Annotated[str, typer.Option(help="it speaks for this site alone; empty: for any")] = "",
    rows_per_s: Annotated[float | None, typer.Option(help="rows a second; without it, as fast as it likes")] = None,
    rows_per_day: Annotated[int | None, typer.Option(help="rows a day (UTC): a bound on copying the model")] = None,
    task: TaskName = "digits",
) -> None:
    """Make a token. It is shown once; only its hash is kept."""
    from pipelines import serving_tokens

    typer.echo(serving_tokens.add(log_of(task), name, site or None, scope, rows_per_s, rows_per_day))


@app.command("list")
def listed(task: TaskName = "digits") -> None:
    """The tokens that are valid, and what each has used of today."""
    from pipelines import serving_tokens

    engine = log_of(task)
    serving_tokens.open_tables(engine)
    used = serving_tokens.used(engine, time.strftime("%Y-%m-%d", time.gmtime()))
    for token in serving_tokens.valid(engine).values():
        speed = "any speed" if token.rows_per_s is None else f"{token.rows_per_s:g} rows/s"
        spent = f"{used.get(token.sha256, 0)} of {token.rows_per_day} rows claimed today" if token.rows_per_day else ""
        typer.echo(
            "\t".join([token.name, token.site or "any site", ",".join(sorted(token.scopes)), speed, spent]).rstrip()
        )


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="the token's name")], task: TaskName = "digits") -> None:
    """End a token; the service forgets it within two seconds."""
    from pipelines import serving_tokens

    serving_tokens.revoke(log_of(task), name)
    typer.echo(f"{name} is revoked")
