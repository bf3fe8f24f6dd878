"""Customers' cases: a picture with the answer that is expected for it, kept for every model to come.

A case is named by its picture's content. What is said of it is appended: a corrected expectation and a withdrawal are
further versions, and the newest one counts. Its picture came from the customer and lies in the central image store
from the start, so no row of a site crosses anything here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from models.errors import BadInput, Missing
from models.images import content_hash
from monitoring.database import CASE_FINDINGS, CASES, insert_new
from monitoring.traffic import TrafficLog

SHORT = 12
"""Digits of a case id in sentences and tables; a case is found by so many, or by fewer where they name one."""

Status = Literal["new", "already", "corrected", "reopened", "withdrawn"]


class UnknownCase(Missing):
    """There is no case of that id."""


@dataclass(frozen=True)
class Submission:
    """What a customer says of one picture (PNG bytes). expected: a class by name; note: 400 characters at most."""

    png: bytes
    expected: str
    site: str | None = None
    submitter: str = "customer"
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One version of a case, as it stands in the log database."""

    seq: int
    case_id: str
    version: int
    expected: str
    withdrawn: bool
    site: str | None
    submitter: str
    note: str
    at: float


@dataclass(frozen=True)
class Taken:
    """What became of a submission: the case's newest version, and the one before it if this made a new one."""

    case: Case
    status: Status
    before: Case | None = None

    @property
    def sentence(self) -> str:
        case, before = self.case, self.before
        if before is None or self.status == "withdrawn":
            known = "withdrawn already" if case.withdrawn else "known"
            return f"case {short(case.case_id)} is {known if self.status == 'already' else self.status}"
        if self.status == "reopened":
            return f"case {short(case.case_id)} had been withdrawn and counts again: {case.expected!r} is expected"
        return (
            f"until now {before.expected!r} was expected of this picture (version {before.version}, by "
            f"{before.submitter}); from now on {case.expected!r} is (version {case.version})"
        )


@dataclass(frozen=True)
class Finding:
    """What a version of the model did with a version of a case. cause: why it erred, if somebody has looked."""

    case_id: str
    case_version: int
    model_version: int
    passed: bool
    cause: str | None = None
    at: float = 0.0


def short(case_id: str) -> str:
    return case_id[:SHORT]


# -- writing ----------------------------------------------------------------------------------------------------


def submit(log: TrafficLog, submissions: Sequence[Submission]) -> list[Taken]:
    """Take each by itself, its picture first; the same picture with the same expectation again changes nothing.

    Each is a transaction of its own, so that predictions need not wait for a file of many; where it breaks off, the
    same again finishes it.
    """
    taken = []
    for each in submissions:
        said = {name: value for name, value in vars(each).items() if name != "png"}
        row = said | {"case_id": content_hash(each.png), "withdrawn": False}
        log.pictures.keep({row["case_id"]: each.png})
        taken.append(_append(log.engine, row))
    return taken


def withdraw(engine: sa.Engine, case_id: str, reason: str, submitter: str = "customer") -> Taken:
    """From now on the case counts no more; its versions stay. case_id: whole, or the first digits of one.

    Raises:
        UnknownCase: there is none.
        BadInput: no reason is given, or the digits begin several ids.
    """
    if not reason.strip():
        raise BadInput("a case is withdrawn for a reason; say which")
    found = find(engine, case_id)
    row = {"case_id": found.case_id, "withdrawn": True, "site": found.site, "submitter": submitter, "note": reason}
    return _append(engine, row)


def _append(engine: sa.Engine, said: dict[str, Any]) -> Taken:
    """The next version of a case, unless its newest one says so already. Without `expected` that stays as it was."""
    while True:
        with engine.connect() as connection:
            before = next(iter(_read(connection, CASES.c.case_id == said["case_id"], limit=1)), None)
        row = {"expected": before.expected if before else ""} | said
        if before is not None and (before.expected, before.withdrawn) == (row["expected"], row["withdrawn"]):
            return Taken(before, "already")
        row |= {"version": before.version + 1 if before else 1, "note": row["note"][:400], "at": time.time()}
        # Another may have written this version meanwhile: then there is a newer one to look at.
        with engine.begin() as connection:
            seq = connection.execute(insert_new(engine, CASES).returning(CASES.c.seq), row).scalar_one_or_none()
        if seq is not None:
            made = Case(seq=seq, **row)
            return Taken(made, _status(made, before), before)


def _status(made: Case, before: Case | None) -> Status:
    if made.withdrawn:
        return "withdrawn"
    if before is None:
        return "new"
    return "reopened" if before.withdrawn else "corrected"


# -- reading ----------------------------------------------------------------------------------------------------


def live(engine: sa.Engine) -> list[Case]:
    """The newest version of every case that is not withdrawn, oldest first: what the gate asks."""
    with engine.connect() as connection:
        return _read(connection, _newest() & ~CASES.c.withdrawn)[::-1]


def page(engine: sa.Engine, before: int | None, limit: int | None) -> list[Case]:
    """The newest version of every case, withdrawn ones too, newest first. before: the seq where the last page ended."""
    with engine.connect() as connection:
        return _read(connection, _newest() & (CASES.c.seq < before if before else sa.true()), limit)


def history(engine: sa.Engine, case_id: str) -> list[Case]:
    """All versions of a case, oldest first."""
    with engine.connect() as connection:
        return _read(connection, CASES.c.case_id == case_id)[::-1]


def find(engine: sa.Engine, case_id: str) -> Case:
    """The newest version of the case whose id is or begins so.

    Raises:
        UnknownCase: there is none.
        BadInput: there are several.
    """
    with engine.connect() as connection:
        found = _read(connection, _newest() & CASES.c.case_id.startswith(case_id, autoescape=True), limit=2)
    if not found or not case_id:
        raise UnknownCase(f"there is no case {case_id!r}; `fedloop cases list` shows those there are")
    if len(found) > 1:
        raise BadInput(f"several cases begin with {case_id!r}; give more of its digits")
    return found[0]


def _newest() -> sa.ColumnElement[bool]:
    newer = CASES.alias()
    return ~sa.exists().where(newer.c.case_id == CASES.c.case_id, newer.c.version > CASES.c.version)


def _read(connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int | None = None) -> list[Case]:
    """Newest first."""
    rows = connection.execute(sa.select(CASES).where(condition).order_by(CASES.c.seq.desc()).limit(limit)).mappings()
    return [Case(**row) for row in rows]


# -- findings ---------------------------------------------------------------------------------------------------


def keep_findings(engine: sa.Engine, found: Sequence[Finding]) -> None:
    """Append those that are not there yet. A cause that is found later is a further row."""
    for number in {each.model_version for each in found}:
        known = {_key(each) for each in findings(engine, number)}
        new = {_key(each): each for each in found if each.model_version == number and _key(each) not in known}
        rows = [vars(each) | {"at": each.at or time.time()} for each in new.values()]
        if rows:
            with engine.begin() as connection:
                connection.execute(CASE_FINDINGS.insert(), rows)


def findings(engine: sa.Engine, model_version: int | None = None, case_id: str | None = None) -> list[Finding]:
    """Oldest first; of one version of the model, of one case, or all."""
    c = CASE_FINDINGS.c
    asked = sa.select(*(c[name] for name in Finding.__dataclass_fields__)).order_by(c.finding)
    if model_version is not None:
        asked = asked.where(c.model_version == model_version)
    if case_id is not None:
        asked = asked.where(c.case_id == case_id)
    with engine.connect() as connection:
        return [Finding(**row) for row in connection.execute(asked).mappings()]


def _key(finding: Finding) -> tuple[object, ...]:
    return finding.case_id, finding.case_version, finding.passed, finding.cause
