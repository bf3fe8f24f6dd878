"""When evidence becomes an alarm, and what happens to an alarm's decision until it is dealt with.

In: the rows of the reported windows. Out: at most one open row in DECISIONS, with its evidence and a sentence. The
row is the decision; the event that starts a retraining is only its messenger. The rules are enforced where the row
is written, in one statement, so that two monitors never make two decisions.

    waiting ──announced──► emitted ──claimed──► running ──► done | failed
       └───────────claimed───────────────────────▲ │
       ▲────────────requeued, its run died────────┘
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, Field, model_validator

from monitoring.database import DECISIONS, PREDICTIONS, WINDOWS

OVERALL = "overall"
PENDING = ("waiting", "emitted")
OPEN = (*PENDING, "running")
FINISHED = ("done", "failed")
_DAY_S = 86_400.0
# PostgreSQL lets two of the conditional inserts below see the same past; deciders take turns.
_DECIDERS_TURN = sa.text("SELECT pg_advisory_xact_lock(7240312)")


class AlarmPolicy(BaseModel):
    """How many odd windows make an alarm, and how long it then keeps still."""

    odd_windows: int = Field(2, ge=2)
    of_windows: int = Field(3, ge=2, description="the odd ones must be among this many last windows")
    cooldown_s: float = Field(1800.0, ge=0, description="silence after the last retraining ended, well or not")
    per_day: int = Field(4, ge=1, description="decisions for drift in any 24 hours")
    attempts: int = Field(3, ge=1, description="runs that may die over one decision before it is given up")

    @model_validator(mode="after")
    def _enough_windows(self) -> AlarmPolicy:
        if self.of_windows < self.odd_windows:
            raise ValueError(f"of_windows ({self.of_windows}) must be at least odd_windows ({self.odd_windows})")
        return self


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


def decide(
    engine: sa.Engine, policy: AlarmPolicy, *, label_budget: float | None = None, now: float | None = None
) -> Decision | None:
    """Write the decision that the newest windows call for, if they do and the rules allow it.

    An alarm needs `odd_windows` of the last `of_windows` windows to be odd in one and the same scope (overall, or the
    same site); windows of an older model version, or that an earlier decision has used, do not count.
    """
    moment = time.time() if now is None else now
    evidence = _evidence(_countable(engine, policy), policy)
    if evidence is None:
        return None
    found = record(engine, "drift", evidence | {"label_budget": label_budget}, moment, policy)
    return next((d for d in _read(engine, DECISIONS.c.decision == found)), None) if found is not None else None


def record(engine: sa.Engine, cause: str, evidence: Mapping[str, Any], now: float, policy: AlarmPolicy) -> int | None:
    """Write a decision unless one is open, the cool-down lasts or the day's number is used up; the row's number."""
    d = DECISIONS.c
    barred = [
        sa.exists().where(d.state.in_(OPEN)),
        sa.exists().where(d.state.in_(FINISHED), _within(d.updated_at, now, policy.cooldown_s)),
        sa.select(sa.func.count()).where(d.cause == "drift", _within(d.created_at, now, _DAY_S)).scalar_subquery()
        >= policy.per_day,
    ]
    row = {
        "cause": sa.literal(cause),
        "evidence": sa.literal(dict(evidence), sa.JSON),
        "created_at": sa.literal(now),
        "state": sa.literal("waiting"),
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


def _countable(engine: sa.Engine, policy: AlarmPolicy) -> list[sa.RowMapping]:
    newest = sa.select(WINDOWS).order_by(WINDOWS.c.window.desc()).limit(policy.of_windows)
    with engine.connect() as connection:
        found = list(connection.execute(newest).mappings())
    used = max((int(d.evidence.get("to_seq") or 0) for d in decisions(engine)), default=0)
    return [w for w in reversed(found) if w["from_seq"] >= used and w["model_version"] == found[0]["model_version"]]


def _evidence(candidates: list[sa.RowMapping], policy: AlarmPolicy) -> dict[str, Any] | None:
    """What the candidates agree on: the scopes that were odd often enough, and in which windows."""
    odd: dict[str, list[sa.RowMapping]] = {}
    for window in candidates:
        for scope, seen in window["evidence"].get("scopes", {}).items():
            if seen["odd"]:
                odd.setdefault(scope, []).append(window)
    agreed = {scope: seen for scope, seen in odd.items() if len(seen) >= policy.odd_windows}
    if not agreed:
        return None
    numbers = {int(w["window"]): w for seen in agreed.values() for w in seen}
    ordered = [numbers[number] for number in sorted(numbers)]
    sites = sorted(scope for scope in agreed if scope != OVERALL)
    watched = sorted({site for w in ordered for site in w["evidence"].get("mix", {})})
    everywhere = len(sites) == len(watched) or not sites
    columns = _columns(agreed, [OVERALL] if everywhere and OVERALL in agreed else sites)
    evidence: dict[str, Any] = {
        "columns": columns,
        "scopes": sorted(agreed),
        "sites": sites,
        "windows": [int(w["window"]) for w in ordered],
        "from_seq": int(ordered[0]["from_seq"]),
        "to_seq": int(ordered[-1]["to_seq"]),
        "model_version": int(ordered[-1]["model_version"]),
    }
    return evidence | {"sentence": _sentence(columns, sites, watched, evidence["windows"])}


def _columns(agreed: Mapping[str, Iterable[sa.RowMapping]], scopes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Per column its worst showing and in how many windows it exceeded its threshold; the worst column first."""
    worst: dict[str, dict[str, Any]] = {}
    times: dict[str, set[int]] = {}
    for scope in scopes:
        for window in agreed[scope]:
            for name, column in window["evidence"]["scopes"][scope]["columns"].items():
                if column["ratio"] <= 1.0:
                    continue
                times.setdefault(name, set()).add(int(window["window"]))
                if name not in worst or column["ratio"] > worst[name]["ratio"]:
                    worst[name] = dict(column) | {"scope": scope}
    order = sorted(worst, key=lambda name: -worst[name]["ratio"])
    return {name: worst[name] | {"times": len(times[name])} for name in order}


def _sentence(columns: Mapping[str, Mapping[str, Any]], sites: list[str], watched: list[str], at: list[int]) -> str:
    """For example: brightness fell from 0.32 to 0.10 (7.1 x its threshold) at all 5 sites in windows 21-22."""
    first, *others = columns.values()
    direction = "fell" if first["now"] < first["was"] else "rose"
    moved = f"{first['what']} {direction} from {first['was']:.2f} to {first['now']:.2f}"
    if not sites:
        where = "over all sites together"
    elif len(sites) == len(watched) and len(sites) > 1:
        where = f"at all {len(sites)} sites"
    else:
        where = f"at {', '.join(sites)}"
    also = f"; so did {len(others)} more columns" if len(others) > 1 else "; so did one more column" if others else ""
    when = f"window {at[0]}" if len(at) == 1 else f"windows {_spans(at)}"
    return f"{moved} ({first['ratio']:.1f} x its threshold) {where} in {when}{also}"


def _spans(numbers: list[int]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


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
