"""The task that a command names: its option, its settings and its traffic log's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import sqlalchemy as sa

    from pipelines.settings import Settings

TaskName = Annotated[str, typer.Option("--task", help="digits, retina, pneumonia, or package.module:TASK")]


def settings_of(task: str) -> Settings:
    """The settings of the task that a command names; its processes inherit the environment that goes with them."""
    from pipelines.settings import load_settings

    settings = load_settings(task)
    settings.apply_environment()
    return settings


def log_of(task: str) -> sa.Engine:
    """The database of its traffic log."""
    from monitoring.database import connect

    settings = settings_of(task)
    settings.folder.mkdir(parents=True, exist_ok=True)
    return connect(settings.database_url)
