"""`fedloop alarms`: what the alarm decided, and a person's word on what waits for one."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.named_task import TaskName, log_of

app = typer.Typer(help="What the alarm decided, and what waits for a person.", no_args_is_help=True)


@app.command("list")
def list_alarms(
    waiting: Annotated[bool, typer.Option("--waiting", help="only those that wait for a person")] = False,
    task: TaskName = "digits",
) -> None:
    """Show every decision, newest first: what happened, what it calls for, what became of it."""
    from datetime import datetime

    from rich.markup import escape
    from rich.table import Table

    from flows.console import CONSOLE
    from monitoring import alarm

    shown = Table()
    for column in ("decision", "at", "severity", "state", "what happened", "what became of it"):
        shown.add_column(column)
    for each in reversed(alarm.decisions(log_of(task))):
        if waiting and each.state not in alarm.UNANSWERED:
            continue
        at = f"{datetime.fromtimestamp(each.created_at):%Y-%m-%d %H:%M}"
        shown.add_row(
            str(each.decision), at, each.severity, each.state, escape(each.sentence), escape(each.outcome or "")
        )
    CONSOLE.print(shown)


@app.command()
def ack(
    decision: Annotated[int, typer.Argument(help="its number, as `fedloop alarms list` shows it", show_default=False)],
    reason: Annotated[str, typer.Option(help="what it was, and what was done")],
    task: TaskName = "digits",
) -> None:
    """Acknowledge a page or a request for labels: it is dealt with, and retraining is allowed again."""
    from monitoring import alarm

    alarm.acknowledge(log_of(task), decision, reason)
    typer.echo(f"decision {decision} is closed: {reason}")
