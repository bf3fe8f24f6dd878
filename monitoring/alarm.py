"""What happens to an alarm's decision until it is dealt with.

In: a decision with its evidence, its probable cause and the answer that this calls for. Out: its row in DECISIONS. The
row is the decision; the event that starts a retraining is only its messenger. The rules are enforced where the row is
written, in one statement, so that two monitors never make two decisions.

    retrain   waiting ──announced──► emitted ──claimed──► running ──► done | failed
                 └───────────claimed───────────────────────▲ │
                 ▲────────────requeued, its run died────────┘
    person    paged ──acknowledged──► closed      (a broken camera: until then nothing is retrained)
    labels    asked ──acknowledged, or the labels have come──► closed
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa

from models.errors import BadInput, Missing
from monitoring.database import DECISIONS, PREDICTIONS, WINDOWS
from monitoring.policy import AlarmPolicy

Answer = Literal["retrain", "labels", "person"]

PENDING = ("waiting", "emitted")
OPEN = (*PENDING, "running")
FINISHED = ("done", "failed")
UNANSWERED = ("paged", "asked")
DRIFT = "drift"
"""The cause of every decision to retrain that an alarm makes; what probably happened is in its evidence."""
BROKEN = "broken camera"
"""The cause that forbids retraining until a person has looked: nobody learns from garbage."""
_FIRST_STATE: Mapping[Answer, str] = {"retrain": "waiting", "person": "paged", "labels": "asked"}
_DAY_S = 86_400.0
# PostgreSQL lets two of the conditional inserts below see the same past; deciders take turns.
_DECIDERS_TURN = sa.text("SELECT pg_advisory_xact_lock(7240312)")


@dataclass(frozen=True)
class Decision:
    """A row of DECISIONS."""

    decision: int
    cause: str
    evidence: Mapping[str, Any]
    created_at: float
    state: str
    attempts: int
    flow_run_id: str | None
    updated_at: float
    outcome: str | None

    @property
    def answer(self) -> Answer:
        """What it calls for; decisions of old and those of a schedule say nothing, and are to retrain."""
        found: Answer = self.evidence.get("answer", "retrain")
        return found

    @property
    def severity(self) -> str:
        return str(self.evidence.get("severity", "warning"))

    @property
    def sentence(self) -> str:
        return str(self.evidence.get("sentence", self.cause))


# -- reading ----------------------------------------------------------------------------------------------------


def decisions(engine: sa.Engine) -> list[Decision]:
    """All of them, oldest first."""
    return _read(engine, sa.true())


def pending(engine: sa.Engine) -> list[Decision]:
    """Those that nobody has acted on yet, oldest first."""
    return _read(engine, DECISIONS.c.state.in_(PENDING))


def windows(engine: sa.Engine) -> pd.DataFrame:
    """Every reported window, oldest first; the columns of WINDOWS."""
    with engine.connect() as connection:
        return pd.read_sql(sa.select(WINDOWS).order_by(WINDOWS.c.window), connection)


def enough_rows(engine: sa.Engine, decision: Decision, minimum_new_rows: int) -> bool:
    """Whether enough traffic has been logged since the drift began to be worth a retraining."""
    start = decision.evidence.get("from_seq")
    if start is None:
        return True
    since = sa.select(PREDICTIONS.c.seq).where(PREDICTIONS.c.seq >= int(start)).limit(minimum_new_rows).subquery()
    with engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(since)).scalar_one()) >= minimum_new_rows


def _read(engine: sa.Engine, condition: sa.ColumnElement[bool]) -> list[Decision]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(DECISIONS).where(condition).order_by(DECISIONS.c.decision)).mappings()
        return [Decision(**row) for row in rows]


# -- deciding ---------------------------------------------------------------------------------------------------


def record(engine: sa.Engine, cause: str, evidence: Mapping[str, Any], now: float, policy: AlarmPolicy) -> int | None:
    """Write a decision unless the rules bar it; the row's number.

    A retraining is barred while one is open, while the cool-down lasts, when the day's number is used up, and while
    nobody has acknowledged a broken camera. A page or a request for labels is barred by an open one of the same cause
    at the same sites.
    """
    answer: Answer = evidence.get("answer", "retrain")
    d = DECISIONS.c
    if answer == "retrain":
        barred = [
            sa.exists().where(d.state.in_(OPEN)),
            sa.exists().where(d.state == "paged", d.cause == BROKEN),
            sa.exists().where(d.state.in_(FINISHED), _within(d.updated_at, now, policy.cooldown_s)),
            sa.select(sa.func.count()).where(d.cause == DRIFT, _within(d.created_at, now, _DAY_S)).scalar_subquery()
            >= policy.per_day,
        ]
    else:
        known = decisions(engine)
        same = [one for one in known if one.state in UNANSWERED and one.cause == cause]
        if any(one.evidence.get("sites") == evidence.get("sites") for one in same):
            return None
        barred = [sa.exists().where(d.decision > max((one.decision for one in known), default=0))]
    row = {
        "cause": sa.literal(cause),
        "evidence": sa.literal(dict(evidence), sa.JSON),
        "created_at": sa.literal(now),
        "state": sa.literal(_FIRST_STATE[answer]),
        "attempts": sa.literal(0),
        "updated_at": sa.literal(now),
    }
    statement = sa.insert(DECISIONS).from_select(list(row), sa.select(*row.values()).where(~sa.or_(*barred)))
    statement = statement.returning(d.decision)  # psycopg counts no rows of such an insert
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(_DECIDERS_TURN)
        return connection.execute(statement).scalar_one_or_none()


def _within(moment: sa.Column[float], now: float, seconds: float) -> sa.ColumnElement[bool]:
    """On either side of now: after the clock was set back, what lies far in the future bars nothing."""
    return sa.and_(moment > now - seconds, moment < now + seconds)


# -- moving on --------------------------------------------------------------------------------------------------


def emitted(engine: sa.Engine, decision: int, now: float | None = None) -> bool:
    """The event has been delivered."""
    return _move(engine, decision, PENDING, {"state": "emitted"}, now)


def claim(engine: sa.Engine, decision: int, flow_run_id: str, now: float | None = None) -> bool:
    """Take a decision for a flow run; True for the one run that has it, also when that asks again."""
    values = {"state": "running", "flow_run_id": flow_run_id, "attempts": DECISIONS.c.attempts + 1}
    if _move(engine, decision, PENDING, values, now):
        return True
    mine = sa.and_(
        DECISIONS.c.decision == decision, DECISIONS.c.state == "running", DECISIONS.c.flow_run_id == flow_run_id
    )
    return bool(_read(engine, mine))


def finish(
    engine: sa.Engine,
    decision: int,
    outcome: str,
    state: Literal["done", "failed"] = "done",
    now: float | None = None,
) -> bool:
    """Close a decision that is running; the cool-down starts."""
    return _move(engine, decision, ("running",), {"state": state, "outcome": outcome[:400]}, now)


def acknowledge(engine: sa.Engine, decision: int, reason: str, now: float | None = None) -> None:
    """A person has dealt with a page or a request for labels; reason: what it was.

    Raises:
        Missing: there is no such decision.
        BadInput: no reason, or nothing about the decision waits for a person.
    """
    if not reason.strip():
        raise BadInput(f"decision {decision}: say with --reason what it was; the next one who looks will want to know")
    if _move(engine, decision, UNANSWERED, {"state": "closed", "outcome": reason.strip()[:400]}, now):
        return
    found = next(iter(_read(engine, DECISIONS.c.decision == decision)), None)
    if found is None:
        raise Missing(f"there is no decision {decision}; `fedloop alarms list` shows those there are")
    raise BadInput(f"decision {decision} is {found.state}; only pages and requests for labels are acknowledged")


def requeue(engine: sa.Engine, decision: int, attempts: int = 3, now: float | None = None) -> bool:
    """The run that claimed it is dead: True when the decision waits again, False when it has now failed for good."""
    few = DECISIONS.c.attempts < attempts
    if _move(engine, decision, ("running",), {"state": "waiting", "flow_run_id": None}, now, few):
        return True
    outcome = f"given up: {attempts} runs died over it"
    _move(engine, decision, ("running",), {"state": "failed", "outcome": outcome}, now, ~few)
    return False


def _move(
    engine: sa.Engine,
    decision: int,
    states: tuple[str, ...],
    values: Mapping[str, Any],
    now: float | None,
    condition: sa.ColumnElement[bool] | None = None,
) -> bool:
    """One atomic step of the state machine: whoever comes second changes nothing."""
    where = sa.and_(DECISIONS.c.decision == decision, DECISIONS.c.state.in_(states))
    if condition is not None:
        where = sa.and_(where, condition)
    moved = sa.update(DECISIONS).where(where).values(**values, updated_at=time.time() if now is None else now)
    with engine.begin() as connection:
        return bool(connection.execute(moved).rowcount == 1)
