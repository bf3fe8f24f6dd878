"""Releases: who serves, who served before, and a ledger of every change.

In goes a registered version and a reason; out come aliases and steps that a service follows. The ledger's rows are
written first: whatever is killed in between, the same call again finishes the change and adds no second row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from filelock import FileLock

from models.errors import Missing
from monitoring import moves
from monitoring.database import PROMOTIONS, connect
from pipelines import registry
from pipelines.registry import CHALLENGER, CHAMPION, FALLBACK, STEP
from pipelines.settings import Settings

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Promotion:
    """A row of the ledger: from `at` on `version` serves; None: nobody does."""

    at: float
    version: int | None
    previous: int | None
    reason: str


def promote(settings: Settings, version: int, reason: str, figures: Figures | None = None) -> None:
    """Make a version the champion and the champion before it the fallback. Nothing changes if it is champion already.

    It is on probation then (`pipelines/steps.py`), unless there was nobody before it. figures: what spoke for it.

    Raises:
        Missing: there is no such version, or the registry does not answer.
    """
    registry.version(settings, version)
    with ledger(settings) as engine:
        champion = _number(settings, CHAMPION)
        if champion != version:
            step = moves.SETTLED if champion is None else moves.CHAMPION
            last = moves.standing(engine).get(champion or 0)
            if champion is not None and last is not None and last.to_step == moves.CHAMPION:
                stand(
                    settings, engine, champion, moves.ENDED, f"version {version} serves before its probation was over"
                )
            moves.write(engine, version, step, reason, figures)
            _write(engine, version, champion, reason)
            now = f"{time.time():.3f}"
            registry.tag(settings, version, {"fedloop.promoted": reason, "fedloop.promoted_at": now, STEP: step})
            # The fallback first: killed before the champion is set, the old one serves on and this call starts again.
            if champion is not None:
                registry.set_alias(settings, FALLBACK, champion)
            elif _number(settings, FALLBACK) == version:
                registry.drop_alias(settings, FALLBACK)
            registry.set_alias(settings, CHAMPION, version)
        if _number(settings, CHALLENGER) == version:
            registry.drop_alias(settings, CHALLENGER)


def rollback(settings: Settings, reason: str, figures: Figures | None = None) -> int:
    """Make the fallback the champion again and return its number. There is no fallback then: nothing flips back.

    Raises:
        Missing: there is no fallback.
    """
    with ledger(settings) as engine:
        fallback, champion = _number(settings, FALLBACK), _number(settings, CHAMPION)
        if fallback is None:
            raise Missing(
                f"{settings.model_name!r} has no fallback to roll back to; "
                "name a version instead: `fedloop promote` (`fedloop status` lists them)"
            )
        if champion != fallback:
            if champion is not None:
                moves.write(engine, champion, moves.ROLLED_BACK, reason, figures)
            _write(engine, fallback, champion, reason)
            if champion is not None:
                registry.tag(settings, champion, {"fedloop.rolled_back": reason, STEP: moves.ROLLED_BACK})
            registry.set_alias(settings, CHAMPION, fallback)
        registry.drop_alias(settings, FALLBACK)
        return fallback


def hold(settings: Settings, reason: str) -> int:
    """Take the version that is in shadow or canary out of it and return its number.

    Raises:
        Missing: there is none.
    """
    with ledger(settings) as engine:
        beside = [move.version for move in moves.standing(engine).values() if move.to_step in moves.BESIDE]
        if not beside:
            raise Missing(f"no version of {settings.model_name!r} is in shadow or canary; `fedloop status` says where")
        for version in beside:
            stand(settings, engine, version, moves.HELD, reason)
        return beside[-1]


def retire(settings: Settings, reason: str) -> None:
    """Take all aliases away: nobody serves until the next promotion."""
    with ledger(settings) as engine:
        champion = _number(settings, CHAMPION)
        for version, move in moves.standing(engine).items():
            if move.to_step in moves.OPEN:
                stand(settings, engine, version, moves.ENDED, reason)
        if champion is not None:
            _write(engine, None, champion, reason)
        for alias in (CHALLENGER, FALLBACK, CHAMPION):
            registry.drop_alias(settings, alias)


def stand(
    settings: Settings, engine: sa.Engine, version: int, step: str, reason: str, figures: Figures | None = None
) -> None:
    """Move a version to a step: in the ledger, then as a tag, which the service follows."""
    moves.write(engine, version, step, reason, figures)
    registry.tag(settings, version, {STEP: step, "fedloop.step_reason": reason})


@contextmanager
def ledger(settings: Settings) -> Iterator[sa.Engine]:
    """The log database, for one release at a time in this home."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    # Of one kind per file, so that a pass may call what takes the lock itself.
    with FileLock(settings.folder / "release.lock", is_singleton=True), _connected(settings) as engine:
        yield engine


@contextmanager
def _connected(settings: Settings) -> Iterator[sa.Engine]:
    engine = connect(settings.database_url)
    try:
        yield engine
    finally:
        engine.dispose()


def champion(settings: Settings) -> int | None:
    """The version that serves."""
    return _number(settings, CHAMPION)


def history(settings: Settings) -> list[Promotion]:
    """The ledger, oldest first."""
    with _connected(settings) as engine, engine.connect() as connection:
        rows = connection.execute(sa.select(PROMOTIONS).order_by(PROMOTIONS.c.promotion)).all()
    return [Promotion(row.at, row.version, row.previous, row.reason) for row in rows]


def _number(settings: Settings, alias: str) -> int | None:
    found = registry.by_alias(settings, alias)
    return None if found is None else found.number


def _write(engine: sa.Engine, version: int | None, previous: int | None, reason: str) -> None:
    """Add a row to the ledger, unless its last one says so already: then an earlier call was interrupted."""
    newest = sa.select(PROMOTIONS).order_by(PROMOTIONS.c.promotion.desc()).limit(1)
    row = {"at": time.time(), "version": version, "previous": previous, "reason": reason[:400]}
    with engine.begin() as connection:
        last = connection.execute(newest).first()
        if last is None or (last.version, last.previous) != (version, previous):
            connection.execute(PROMOTIONS.insert().values(**row))
