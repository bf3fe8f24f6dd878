"""Releases: who serves, who served before, and a ledger of every change.

In goes a registered version and a reason; out come aliases that a service follows. The ledger's row is written first:
whatever is killed in between, the same call again finishes the change and adds no second row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from models.errors import Missing
from monitoring.database import PROMOTIONS, connect
from pipelines import registry
from pipelines.registry import CHALLENGER, CHAMPION, FALLBACK
from pipelines.settings import Settings


@dataclass(frozen=True)
class Promotion:
    """A row of the ledger: from `at` on `version` serves; None: nobody does."""

    at: float
    version: int | None
    previous: int | None
    reason: str


def promote(settings: Settings, version: int, reason: str) -> None:
    """Make a version the champion and the champion before it the fallback. Nothing changes if it is champion already.

    Raises:
        Missing: there is no such version, or the registry does not answer.
    """
    registry.version(settings, version)
    champion = _number(settings, CHAMPION)
    if champion != version:
        _write(settings, version, champion, reason)
        registry.tag(settings, version, {"fedloop.promoted": reason, "fedloop.promoted_at": f"{time.time():.3f}"})
        # The fallback first: killed before the champion is set, the old one serves on and this call starts again.
        if champion is not None:
            registry.set_alias(settings, FALLBACK, champion)
        elif _number(settings, FALLBACK) == version:
            registry.drop_alias(settings, FALLBACK)
        registry.set_alias(settings, CHAMPION, version)
    if _number(settings, CHALLENGER) == version:
        registry.drop_alias(settings, CHALLENGER)


def rollback(settings: Settings, reason: str) -> int:
    """Make the fallback the champion again and return its number. There is no fallback then: nothing flips back.

    Raises:
        Missing: there is no fallback.
    """
    fallback, champion = _number(settings, FALLBACK), _number(settings, CHAMPION)
    if fallback is None:
        raise Missing(
            f"{settings.model_name!r} has no fallback to roll back to; "
            "name a version instead: `fedloop promote` (`fedloop status` lists them)"
        )
    if champion != fallback:
        _write(settings, fallback, champion, reason)
        if champion is not None:
            registry.tag(settings, champion, {"fedloop.rolled_back": reason})
        registry.set_alias(settings, CHAMPION, fallback)
    registry.drop_alias(settings, FALLBACK)
    return fallback


def retire(settings: Settings, reason: str) -> None:
    """Take all aliases away: nobody serves until the next promotion."""
    champion = _number(settings, CHAMPION)
    if champion is not None:
        _write(settings, None, champion, reason)
    for alias in (CHALLENGER, FALLBACK, CHAMPION):
        registry.drop_alias(settings, alias)


def history(settings: Settings) -> list[Promotion]:
    """The ledger, oldest first."""
    engine = _engine(settings)
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(PROMOTIONS).order_by(PROMOTIONS.c.promotion)).all()
    finally:
        engine.dispose()
    return [Promotion(row.at, row.version, row.previous, row.reason) for row in rows]


def _number(settings: Settings, alias: str) -> int | None:
    found = registry.by_alias(settings, alias)
    return None if found is None else found.number


def _write(settings: Settings, version: int | None, previous: int | None, reason: str) -> None:
    """Add a row to the ledger, unless its last one says so already: then an earlier call was interrupted."""
    engine = _engine(settings)
    newest = sa.select(PROMOTIONS).order_by(PROMOTIONS.c.promotion.desc()).limit(1)
    row = {"at": time.time(), "version": version, "previous": previous, "reason": reason[:400]}
    try:
        with engine.begin() as connection:
            last = connection.execute(newest).first()
            if last is None or (last.version, last.previous) != (version, previous):
                connection.execute(PROMOTIONS.insert().values(**row))
    finally:
        engine.dispose()


def _engine(settings: Settings) -> sa.Engine:
    settings.folder.mkdir(parents=True, exist_ok=True)
    return connect(settings.database_url)
