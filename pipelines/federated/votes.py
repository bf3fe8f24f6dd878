"""Votes on the queue: sheets are handed out to one person at a time, votes come in, labels follow from them.

One vote settles an item that wants one person; two equal votes settle one that wants two; where these differ, a
third person who sees both decides. A sheet that is handed out is reserved for some minutes, so that no two people
do the same work; votes are kept as they come, so a browser that is closed loses nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipelines.federated.site_tables import ANNOTATIONS, ITEMS, LEASES, NEIGHBOURS, UNREADABLE, VOTES, among, writing

LEASE_S = 600.0
"""How long what is handed out stays reserved; every vote and every new sheet renews it."""

SHEET_ITEMS = 40

_UNDO = VOTES.alias()
STANDING = (
    sa.select(VOTES)
    .where(VOTES.c.undoes.is_(None), ~sa.exists().where(_UNDO.c.undoes == VOTES.c.vote))
    .subquery("standing")
)
"""Votes that nobody has taken back. Of several by one person on one item the last counts."""

_OTHER = ITEMS.alias()
_SUPERSEDED = sa.exists().where(
    (_OTHER.c.row_id == ITEMS.c.row_id) & (_OTHER.c.item != ITEMS.c.item) & _OTHER.c.withdrawn_at.is_(None),
    _OTHER.c.label.is_(None) | (_OTHER.c.item > ITEMS.c.item),
)
"""Items whose row has been asked for anew since: their votes stand as they are."""


@dataclass(frozen=True)
class Item:
    """A row on a sheet. votes: the two that differ, where a third person is asked."""

    item: int
    row_id: str
    votes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """Open items of one cluster, reserved for one person until `until` (seconds since the epoch)."""

    version: str
    cluster: int
    reason: str
    items: tuple[Item, ...]
    neighbours: tuple[str, ...]
    until: float


def verdict(said: Mapping[str, int], wants: int) -> int | None:
    """The label that an item's votes come to, None while they come to none.

    said: annotator → class index or UNREADABLE, in the order in which they came to the item.
    """
    votes = list(said.values())
    if len(votes) > wants:
        return votes[-1]  # whoever came after two that differed saw both
    return votes[0] if len(votes) == wants and len(set(votes)) == 1 else None


def needed(said: Mapping[str, int], wants: int) -> int:
    """How many people the item needs, as things stand."""
    return wants + (len(said) >= wants and len(set(list(said.values())[:wants])) > 1)


# -- handing out ------------------------------------------------------------------------------------------------


def take(
    database: sa.Engine,
    annotator: str,
    beside: Sequence[int] = (),
    holding: int | None = None,
    now: float | None = None,
) -> Sheet | None:
    """The next sheet for a person, reserved; None where there is nothing (left) that they may do.

    What they hold already comes first, then what two others differ on, then the newest version's clusters.
    beside: items that they have before them already. holding: the sheet must have this item.
    """
    now = time.time() if now is None else now
    with writing(database) as connection:
        connection.execute(sa.delete(LEASES).where(LEASES.c.until <= now))
        open_items = list(connection.execute(
            sa.select(ITEMS).where(ITEMS.c.label.is_(None), ITEMS.c.withdrawn_at.is_(None)).order_by(ITEMS.c.item)
        ))  # fmt: skip
        said, leases = _said(connection, [row.item for row in open_items]), _leases(connection)
        newest = {row.version: row.item for row in open_items}
        free = []
        for row in open_items:
            own, holders = said.get(row.item, {}), leases.get(row.item, set())
            if row.item not in beside and _may(row, annotator, own, holders) is None and annotator not in own:
                disputed = len(own) >= row.wants
                key = (row.item != holding, annotator not in holders, not disputed, -newest[row.version], row.item)
                free.append((key, (row.version, row.cluster, row.reason, disputed), row))
        if not free:
            return None
        _, group, _ = min(free, key=lambda each: each[0])
        chosen = sorted((each for each in free if each[1] == group), key=lambda each: each[0])[:SHEET_ITEMS]
        rows = sorted((row for _, _, row in chosen), key=lambda row: row.item)
        until = now + LEASE_S
        _lease(connection, annotator, [row.item for row in rows], until)
        shown = connection.scalars(
            sa.select(NEIGHBOURS.c.row_id)
            .where(NEIGHBOURS.c.version == group[0], NEIGHBOURS.c.cluster == group[1])
            .order_by(NEIGHBOURS.c.rank)
        ).all()
    here = {row.row_id for row in rows}
    return Sheet(
        *group[:3],
        items=tuple(
            Item(row.item, row.row_id, tuple(said.get(row.item, {}).values()) if group[3] else ()) for row in rows
        ),
        neighbours=tuple(row for row in shown if row not in here),
        until=until,
    )


def _may(row: Any, annotator: str, said: Mapping[str, int], holders: set[str]) -> str | None:
    """Why that person may not vote on the item, None where they may. holders: who has it before them."""
    if annotator in said:
        final = len(said) > row.wants and list(said)[-1] != annotator
        return "a third person has decided it" if final else None
    if annotator in (row.before_by or "").split(", "):
        return "a second opinion is another person's"
    if len(said) >= needed(said, row.wants):
        return "others have labelled it meanwhile"
    if len(said) + len(holders - {annotator} - set(said)) >= needed(said, row.wants):
        return "another person has it before them"
    return None


# -- votes ------------------------------------------------------------------------------------------------------


def vote(
    database: sa.Engine, annotator: str, choices: Mapping[int, int], action: str, now: float | None = None
) -> dict[int, str]:
    """Keep a person's votes (item → class index or UNREADABLE); returns item → why, of those that were refused.

    action names the votes together: they are undone together, and sent again they are kept once.
    """
    now = time.time() if now is None else now
    with writing(database) as connection:
        rows = {row.item: row for row in connection.execute(sa.select(ITEMS).where(among(ITEMS.c.item, choices)))}
        known = (VOTES.c.annotator == annotator) & (VOTES.c.action == action)
        repeated = set(connection.scalars(sa.select(VOTES.c.item).where(known)))
        said, leases = _said(connection, choices), _leases(connection, now)
        past = set(connection.scalars(sa.select(ITEMS.c.item).where(among(ITEMS.c.item, choices), _SUPERSEDED)))
        refused = {item: "the queue has no such item" for item in choices if item not in rows}
        refused |= dict.fromkeys(past, "the row has been asked for anew since")
        new = []
        for item, row in rows.items():
            if item in past:
                continue
            reason = _may(row, annotator, said.get(item, {}), leases.get(item, set()))
            if reason:
                refused[item] = reason
            elif item not in repeated and said.get(item, {}).get(annotator) != choices[item]:
                new.append({"item": item, "annotator": annotator, "action": action, "choice": choices[item], "at": now})
        if new:
            connection.execute(sa.insert(VOTES), new)
        done = [item for item in rows if item not in refused]
        mine = (LEASES.c.annotator == annotator) & among(LEASES.c.item, done)
        connection.execute(sa.delete(LEASES).where(mine))
        connection.execute(sa.update(LEASES).where(LEASES.c.annotator == annotator).values(until=now + LEASE_S))
        _follow(connection, done, now)
    return refused


def settle(database: sa.Engine, labels: Mapping[str, int], annotator: str) -> int:
    """An annotator's labels by row (row_id → class index) for what is open; returns how many became annotations."""
    with database.connect() as connection:
        query = sa.select(ITEMS.c.item, ITEMS.c.row_id).where(among(ITEMS.c.row_id, labels), ITEMS.c.label.is_(None))
        items = {row.item: row.row_id for row in connection.execute(query.where(ITEMS.c.withdrawn_at.is_(None)))}
    vote(database, annotator, {item: labels[row] for item, row in items.items()}, secrets.token_hex(16))
    with database.connect() as connection:
        settled = among(ITEMS.c.item, items) & ITEMS.c.label.is_not(None)
        return int(connection.scalar(sa.select(sa.func.count()).select_from(ITEMS).where(settled)) or 0)


def undo(database: sa.Engine, annotator: str, now: float | None = None) -> list[int]:
    """Take back the last thing that a person did and has not taken back yet; returns its items, reserved for them."""
    now = time.time() if now is None else now
    past = sa.select(ITEMS.c.item).where(_SUPERSEDED)
    own = (STANDING.c.annotator == annotator) & STANDING.c.item.not_in(past)
    with writing(database) as connection:
        last = connection.execute(sa.select(STANDING).where(own).order_by(STANDING.c.vote.desc()).limit(1)).first()
        if last is None:
            return []
        votes = list(connection.execute(sa.select(STANDING).where(own, STANDING.c.action == last.action)))
        action = secrets.token_hex(16)
        entries = [
            {"item": v.item, "annotator": annotator, "action": action, "undoes": v.vote, "at": now} for v in votes
        ]
        connection.execute(sa.insert(VOTES), entries)
        items = sorted(v.item for v in votes)
        _follow(connection, items, now)
        _lease(connection, annotator, items, now + LEASE_S)
    return items


# -- what follows -----------------------------------------------------------------------------------------------


def _said(connection: sa.Connection, items: Sequence[int] | Mapping[int, Any]) -> dict[int, dict[str, int]]:
    """item → annotator → choice, annotators in the order in which they came to the item."""
    found: dict[int, dict[str, int]] = {}
    for row in connection.execute(sa.select(STANDING).where(among(STANDING.c.item, items)).order_by(STANDING.c.vote)):
        found.setdefault(row.item, {})[row.annotator] = row.choice
    return found


def _leases(connection: sa.Connection, now: float = 0.0) -> dict[int, set[str]]:
    """item → who has it before them."""
    found: dict[int, set[str]] = {}
    for row in connection.execute(sa.select(LEASES).where(LEASES.c.until > now)):
        found.setdefault(row.item, set()).add(row.annotator)
    return found


def _lease(connection: sa.Connection, annotator: str, items: Sequence[int], until: float) -> None:
    table = [{"item": item, "annotator": annotator, "until": until} for item in items]
    connection.execute(sa.insert(LEASES).prefix_with("OR REPLACE"), table)


def _follow(connection: sa.Connection, items: Sequence[int], now: float) -> None:
    """Bring the items' labels, and their rows' annotations, to what the votes come to now."""
    said = _said(connection, items)
    rows = list(connection.execute(sa.select(ITEMS).where(among(ITEMS.c.item, items))))
    changes = [
        {"at_item": row.item, "label": label, "settled_at": None if label is None else now, "withdrawn_at": None}
        for row in rows
        if (label := verdict(said.get(row.item, {}), row.wants)) != row.label or row.withdrawn_at is not None
    ]
    if changes:
        connection.execute(sa.update(ITEMS).where(ITEMS.c.item == sa.bindparam("at_item")), changes)
        _annotate(connection, {row.row_id for row in rows})


def _annotate(connection: sa.Connection, row_ids: set[str]) -> None:
    """A row's annotation is what its newest settled item says, else what it was before the queue knew the row."""
    rows = list(connection.execute(
        sa.select(ITEMS).where(among(ITEMS.c.row_id, sorted(row_ids))).order_by(ITEMS.c.item)
    ))  # fmt: skip
    said = _said(connection, [row.item for row in rows])
    words: dict[str, tuple[int | None, str | None]] = {}
    for row in rows:
        if row.label is not None:
            voters = list(said[row.item])
            words[row.row_id] = row.label, voters[-1] if len(voters) > row.wants else ", ".join(voters)
        elif row.withdrawn_at is None:
            words.setdefault(row.row_id, (row.before, row.before_by))
    connection.execute(sa.delete(ANNOTATIONS).where(among(ANNOTATIONS.c.row_id, sorted(words))))
    table = [
        {"row_id": row, "label": label, "annotator": str(by)[:64]}
        for row, (label, by) in words.items()
        if label is not None and label != UNREADABLE
    ]
    if table:
        connection.execute(sa.insert(ANNOTATIONS), table)
