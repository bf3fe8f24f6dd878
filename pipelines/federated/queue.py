"""The queue of rows that the loop wants labelled, at the site where they lie.

A labelling job puts rows in; people at the desk, an import or a rehearsal's oracle vote on them (`votes.py`); a
label that is settled becomes an annotation. What the loop learns of all this is how many labels there are and how
many are still pending.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray

from pipelines.federated.files import digest
from pipelines.federated.site_tables import (
    ANNOTATIONS,
    ITEMS,
    NEIGHBOURS,
    PICTURES,
    UNREADABLE,
    among,
    writing,
)
from pipelines.federated.store import SiteStore
from pipelines.federated.votes import STANDING, settle

if TYPE_CHECKING:
    from pipelines.federated.site import Annotator

NEIGHBOURS_SHOWN = 12
DOUBTED = "suspected wrong"
"""The reason of items that ask about a label that is doubted; see doubts.py."""
ABSTAINED = "the model abstained"
"""How the reason of rows begins that a model left to people: no labelling job withdraws them."""

Pictures = Mapping[str, bytes] | pd.Series
"""row_id → PNG"""


@dataclass(frozen=True)
class Wanted:
    """A row that somebody is to label. reason: the strategy that chose it; wants: people that must agree, 1 or 2."""

    row_id: str
    cluster: int
    reason: str
    wants: int = 1


@dataclass(frozen=True)
class Progress:
    """Items of the queue's present versions: those that have something open, or else the newest.

    total: labels that were asked for. disputed: two people differ, a third is needed. own: items one has voted on.
    """

    total: int = 0
    labelled: int = 0
    unreadable: int = 0
    disputed: int = 0
    own: int = 0

    @property
    def open(self) -> int:
        return self.total - self.labelled - self.unreadable


class People:
    """The annotator of a site with a desk: it says nothing at once, its people vote when they sit down."""

    name = "desk"

    def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
        return {}


def rows_near(
    row_ids: Sequence[str], nearest: NDArray[np.int64], distance: NDArray[np.floating], clusters: Collection[int]
) -> dict[int, list[str]]:
    """Cluster → its rows nearest to the middle, for the annotator's eye. nearest, distance: [n], as row_ids."""
    order = np.argsort(distance, kind="stable")
    return {k: [row_ids[i] for i in order[nearest[order] == k][:NEIGHBOURS_SHOWN]] for k in clusters}


def hand_over(
    store: SiteStore,
    annotator: Annotator,
    wanted: Sequence[Wanted],
    pictures: Pictures,
    neighbours: Mapping[int, Sequence[str]],
) -> tuple[int, int]:
    """Enqueue what is wanted and have the annotator vote on what is open of it. The same again enqueues nothing.

    pictures: of those wanted and of the neighbours. neighbours: cluster → rows near its middle.
    Returns (labels that came in by this call, rows that are still to be labelled).
    """
    database = store.database
    enqueue(database, wanted, pictures, neighbours)
    rows = [each.row_id for each in wanted]
    asked = open_rows(database, rows)
    new = settle(database, annotator.label(store, asked), annotator.name) if asked else 0
    return new, len(open_rows(database, rows))


def enqueue(
    database: sa.Engine,
    wanted: Sequence[Wanted],
    pictures: Pictures,
    neighbours: Mapping[int, Sequence[str]] | None = None,
    again: bool = False,
    more: bool = False,
) -> str:
    """Ask for labels; returns the queue's version, which is a hash of what is asked for.

    A row that has a label, was found unreadable or is in the queue already is not asked for twice. What earlier
    versions wanted, this one does not, and nobody has begun, is withdrawn. again: of rows that have a label somebody
    else is asked, once, and nothing is withdrawn. more: nothing is withdrawn.
    """
    version, now = digest([asdict(each) for each in wanted], again), time.time()
    with writing(database) as connection:
        labels = {row.row_id: row for row in connection.execute(sa.select(ANNOTATIONS))}
        items = list(connection.execute(sa.select(ITEMS)))
        taken = {row.row_id for row in items if row.label is None and row.withdrawn_at is None}
        here = {row.row_id for row in items if row.version == version}
        dropped = {row.row_id for row in items if row.version == version and row.withdrawn_at is not None}
        if again:
            told = {
                row.row_id
                for row in items
                if row.label == UNREADABLE or (row.label is not None and row.before is not None)
            }
            free = [w for w in wanted if w.row_id not in taken | here | told]
        else:
            done = {row.row_id for row in items if row.label is not None} | set(labels)
            free = [w for w in wanted if w.row_id not in taken | done]
            if not more:
                _withdraw(connection, {w.row_id for w in wanted}, now)
        new = [
            asdict(w)
            | {"version": version, "at": now}
            | {"before": label and label.label, "before_by": label and label.annotator}
            for w in {w.row_id: w for w in free if w.row_id not in here}.values()
            for label in [labels.get(w.row_id)]
        ]
        if new:
            connection.execute(sa.insert(ITEMS), new)
        back = [w.row_id for w in free if w.row_id in dropped]
        if back:
            own = (ITEMS.c.version == version) & among(ITEMS.c.row_id, back)
            connection.execute(sa.update(ITEMS).where(own).values(withdrawn_at=None))
        if new or back:
            clusters = {w.cluster for w in free}
            _show(connection, version, {k: rows for k, rows in (neighbours or {}).items() if k in clusters})
            shown = {w.row_id for w in free} | {row for k in clusters for row in (neighbours or {}).get(k, ())}
            kept = [{"row_id": row, "png": pictures[row]} for row in sorted(shown)]
            connection.execute(sa.insert(PICTURES).prefix_with("OR IGNORE"), kept)
    return version


def _withdraw(connection: sa.Connection, wanted: set[str], now: float) -> None:
    begun = sa.exists().where(STANDING.c.item == ITEMS.c.item)
    idle = ITEMS.c.label.is_(None) & ITEMS.c.withdrawn_at.is_(None) & ~begun
    others = (ITEMS.c.reason != DOUBTED) & ~ITEMS.c.reason.startswith(ABSTAINED)
    unwanted = idle & others & ~among(ITEMS.c.row_id, wanted)
    connection.execute(sa.update(ITEMS).where(unwanted).values(withdrawn_at=now))


def _show(connection: sa.Connection, version: str, neighbours: Mapping[int, Sequence[str]]) -> None:
    table = [
        {"version": version, "cluster": cluster, "rank": rank, "row_id": row}
        for cluster, rows in neighbours.items()
        for rank, row in enumerate(rows[:NEIGHBOURS_SHOWN])
    ]
    if table:
        connection.execute(sa.insert(NEIGHBOURS).prefix_with("OR IGNORE"), table)


def open_rows(database: sa.Engine, row_ids: Sequence[str]) -> list[str]:
    """Those of the rows that somebody is still to label, in their order."""
    query = sa.select(ITEMS.c.row_id).where(ITEMS.c.label.is_(None), ITEMS.c.withdrawn_at.is_(None))
    with database.connect() as connection:
        waiting = set(connection.scalars(query.where(ITEMS.c.before.is_(None))))
    return [row for row in row_ids if row in waiting]


def progress(database: sa.Engine, annotator: str = "") -> Progress:
    """How far the present versions are, and how many of their items that person has voted on."""
    with database.connect() as connection:
        items = list(connection.execute(sa.select(ITEMS).where(ITEMS.c.withdrawn_at.is_(None))))
        votes = list(connection.execute(sa.select(STANDING.c.item, STANDING.c.annotator, STANDING.c.choice)))
    present = {row.version for row in items if row.label is None} or {row.version for row in items[-1:]}
    counted = {row.item: row for row in items if row.version in present}
    said: dict[int, dict[str, int]] = {}
    for vote in votes:
        said.setdefault(vote.item, {})[vote.annotator] = vote.choice
    return Progress(
        total=len(counted),
        labelled=sum(row.label is not None and row.label != UNREADABLE for row in counted.values()),
        unreadable=sum(row.label == UNREADABLE for row in counted.values()),
        disputed=sum(row.label is None and len(said.get(row.item, ())) >= row.wants for row in counted.values()),
        own=sum(annotator in said.get(item, ()) for item in counted),
    )


def picture(database: sa.Engine, row_id: str) -> bytes | None:
    """The PNG of a row that the queue shows."""
    with database.connect() as connection:
        found = connection.scalar(sa.select(PICTURES.c.png).where(PICTURES.c.row_id == row_id))
    return None if found is None else bytes(found)
