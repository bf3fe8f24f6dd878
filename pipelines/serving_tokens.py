"""The service's tokens, in the log database: who may ask what, for which site, how fast and how much a day.

A token is 32 random bytes, told once; its SHA-256 is kept. What a token has used of its day is kept too, and claimed
in small blocks before it is used, so that neither several replicas nor a restart let anybody have more.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy import Column, Float, Integer, MetaData, String, Table

from models.errors import BadInput
from monitoring.database import insert_new
from monitoring.engines import prepare

METADATA = MetaData()

SCOPES = ("predict", "feedback", "cases", "desk", "metrics", "admin")
"""What a token may be for. admin: everything."""

TOKENS = Table(
    "service_tokens",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("site", String(64)),  # None: any site
    Column("scopes", String(200), nullable=False),  # words with spaces between
    Column("rows_per_s", Float),  # None: as fast as it likes
    Column("rows_per_day", Integer),
    Column("made_at", Float, nullable=False),
    Column("revoked_at", Float),
)
USE = Table(
    "service_token_use",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("day", String(10), primary_key=True),  # UTC
    Column("rows", Integer, nullable=False),
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Token:
    """A token that is valid: whose it is, for which site (None: any), for what, and within which limits."""

    sha256: str
    name: str
    site: str | None
    scopes: frozenset[str]
    rows_per_s: float | None
    rows_per_day: int | None


def open_tables(engine: sa.Engine) -> None:
    """Make the tables where they are missing; several may do so at once.

    Raises:
        Missing: the database does not answer.
    """
    prepare(engine, METADATA)


def add(
    engine: sa.Engine,
    name: str,
    site: str | None,
    scopes: Sequence[str],
    rows_per_s: float | None = None,
    rows_per_day: int | None = None,
) -> str:
    """Make a token. It is told once; what is kept cannot be turned back into it.

    Raises:
        BadInput: a name that cannot be, a name that is taken, an unknown scope, or a limit that lets nothing through.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        said = f"there is no scope {unknown[0]!r}" if unknown else "a token needs a scope"
        raise BadInput(f"{said}; there are {', '.join(SCOPES)}")
    for what, word in (("name", name), ("site", site)):
        if word is not None and not _NAME.fullmatch(word):
            raise BadInput(f"the {what} {word!r} may hold letters, digits, dots, _ and - only, 64 at most")
    if (rows_per_s is not None and not rows_per_s > 0) or (rows_per_day is not None and rows_per_day < 1):
        raise BadInput("a limit of rows must be above 0; leave it out for none")
    open_tables(engine)
    token = secrets.token_urlsafe(32)
    with engine.begin() as connection:
        if connection.execute(sa.select(TOKENS.c.name).where(TOKENS.c.name == name, _VALID)).first():
            raise BadInput(f"there is a token named {name!r} already; revoke it first, or give this one another name")
        row = {
            "sha256": hash_of(token), "name": name, "site": site, "scopes": " ".join(sorted(set(scopes))),
            "rows_per_s": rows_per_s, "rows_per_day": rows_per_day, "made_at": time.time(),
        }  # fmt: skip
        connection.execute(sa.insert(TOKENS), row)
    return token


def revoke(engine: sa.Engine, name: str) -> None:
    """End a token; the service forgets it within a second or two.

    Raises:
        BadInput: there is none of that name.
    """
    open_tables(engine)
    with engine.begin() as connection:
        done = connection.execute(sa.update(TOKENS).where(TOKENS.c.name == name, _VALID).values(revoked_at=time.time()))
        if not done.rowcount:
            raise BadInput(f"there is no token named {name!r}; `fedloop tokens list` shows those there are")


def valid(engine: sa.Engine) -> dict[str, Token]:
    """The tokens that are valid, by their hash."""
    columns = [column for column in TOKENS.columns if column.name in Token.__dataclass_fields__]
    with engine.connect() as connection:
        rows = connection.execute(sa.select(*columns).where(_VALID).order_by(TOKENS.c.made_at)).mappings()
        return {row["sha256"]: Token(**{**row, "scopes": frozenset(row["scopes"].split())}) for row in rows}


def to_json(found: Mapping[str, Token]) -> bytes:
    """Tokens as a file's content; from_json is the way back."""
    return json.dumps([asdict(each) | {"scopes": sorted(each.scopes)} for each in found.values()]).encode()


def from_json(content: bytes) -> dict[str, Token]:
    return {each["sha256"]: Token(**{**each, "scopes": frozenset(each["scopes"])}) for each in json.loads(content)}


def used(engine: sa.Engine, day: str) -> dict[str, int]:
    """Rows that each token has claimed on that day, by its hash."""
    with engine.connect() as connection:
        return dict(connection.execute(sa.select(USE.c.sha256, USE.c.rows).where(USE.c.day == day)).tuples().all())


def claim(engine: sa.Engine, token: Token, day: str, rows: int) -> int:
    """Claim up to so many rows of the token's day; how many it gets."""
    assert token.rows_per_day is not None
    here = (USE.c.sha256 == token.sha256) & (USE.c.day == day)
    with engine.begin() as connection:
        connection.execute(insert_new(engine, USE), {"sha256": token.sha256, "day": day, "rows": 0})
        # From here on the row is this transaction's: the insert or the lock keeps others out until it ends.
        before = int(connection.execute(sa.select(USE.c.rows).where(here).with_for_update()).scalar_one())
        got = max(0, min(rows, token.rows_per_day - before))
        if got:
            connection.execute(sa.update(USE).where(here).values(rows=before + got))
    return got


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


_VALID = TOKENS.c.revoked_at.is_(None)
