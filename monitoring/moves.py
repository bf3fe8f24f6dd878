"""Where every version stands on its way to serving: one row a move, never changed.

    shadow ──► canary ──► champion (on probation) ──► settled
       └─ held ──┘             └─► rolled back
    and `ended` from each of them, where another version took its place

In go moves with their reason and figures; out comes the step of a version, which is what its newest move says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from monitoring.database import MOVES, PREDICTIONS, insert_new

SHADOW, CANARY, CHAMPION = "shadow", "canary", "champion"
SETTLED, HELD, ROLLED_BACK, ENDED = "settled", "held", "rolled back", "ended"
BESIDE = (SHADOW, CANARY)
OPEN = (*BESIDE, CHAMPION)


@dataclass(frozen=True)
class Move:
    """A row of MOVES. from_seq: the newest prediction before it; at: seconds since the epoch."""

    version: int
    number: int
    from_step: str | None
    to_step: str
    from_seq: int
    at: float
    reason: str
    figures: Mapping[str, Any]


def history(engine: sa.Engine) -> list[Move]:
    """All moves, oldest first."""
    names = [column for column in MOVES.columns if column.name != "move"]
    with engine.connect() as connection:
        return [Move(*row) for row in connection.execute(sa.select(*names).order_by(MOVES.c.move))]


def standing(engine: sa.Engine) -> dict[int, Move]:
    """Version → its newest move."""
    return {move.version: move for move in history(engine)}


def write(engine: sa.Engine, version: int, to_step: str, reason: str, figures: Mapping[str, Any] | None = None) -> bool:
    """Move a version; False where it stands there already, or another process moved it at the same moment."""
    last = standing(engine).get(version)
    if last is not None and last.to_step == to_step:
        return False
    row = {
        "version": version,
        "number": 1 if last is None else last.number + 1,
        "from_step": None if last is None else last.to_step,
        "to_step": to_step,
        "at": time.time(),
        "reason": reason[:400],
        "figures": dict(figures or {}),
    }
    with engine.begin() as connection:
        newest = connection.execute(sa.select(sa.func.max(PREDICTIONS.c.seq))).scalar_one() or 0
        made = insert_new(engine, MOVES).values(row | {"from_seq": newest}).returning(MOVES.c.move)
        return connection.execute(made).first() is not None
