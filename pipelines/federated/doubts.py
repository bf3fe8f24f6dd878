"""Labels that are probably wrong: one list a site, written by whoever looks, and the way back to the desk.

The labelling step doubts bought labels that confident learning finds odd, a diagnosis those of learned rows that
mislead an error or that most of their neighbours contradict. What people then say of such a row goes into the site's
next labelling, where it speaks before everything that was said earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd
import sqlalchemy as sa

from models.errors import BadInput
from pipelines.federated.queue import DOUBTED, Wanted, enqueue
from pipelines.federated.site_tables import ANNOTATIONS, DOUBTS, ITEMS, UNREADABLE, writing
from pipelines.federated.store import SiteStore

_ANSWERED = (ITEMS.c.reason == DOUBTED) & ITEMS.c.label.is_not(None)


@dataclass(frozen=True)
class Doubt:
    """A label, bought or spread, and the class that is likelier. support: what speaks for the label, from 0 to 1."""

    row_id: str
    label: int
    suggestion: int
    support: float


def doubt(store: SiteStore, by: Literal["labelling", "diagnosis"], doubted: Sequence[Doubt]) -> None:
    """Replace what `by` doubted when it looked last."""
    with writing(store.database) as connection:
        connection.execute(sa.delete(DOUBTS).where(DOUBTS.c.by == by))
        if doubted:
            connection.execute(sa.insert(DOUBTS), [asdict(each) | {"by": by} for each in doubted])


def doubts(store: SiteStore) -> list[Doubt]:
    """Doubted labels that stand as they were and that nobody has looked at since, the least supported first.

    A row is listed once, whoever doubts it.
    """
    c = DOUBTS.c
    query = sa.select(c.row_id, c.label, c.suggestion, c.support, ANNOTATIONS.c.label.label("now"))
    with store.database.connect() as connection:
        rows = connection.execute(query.outerjoin_from(DOUBTS, ANNOTATIONS, c.row_id == ANNOTATIONS.c.row_id))
        standing = [Doubt(*row[:4]) for row in rows if row.now in (None, row.label)]
        seen = set(connection.scalars(sa.select(ITEMS.c.row_id).where(_ANSWERED)))
    once: dict[str, Doubt] = {}
    for each in sorted(standing, key=lambda each: (each.support, each.row_id)):
        if each.row_id not in seen:
            once.setdefault(each.row_id, each)
    return list(once.values())


def ask_again(store: SiteStore, row_ids: Sequence[str], opinions: int = 1) -> int:
    """Have people look at rows whose label is doubted, other people than those who gave it; returns how many are new.

    A bought label stays until the new votes are settled. Rows in the queue, those that had a second opinion, and those
    that nobody could read are passed over. opinions: people that must agree.

    Raises:
        BadInput: no training snapshot of the site has a row of that name.
    """
    rows = store.rows([manifest.id for manifest in store.manifests()], "train")
    pictures = dict(zip(rows["row_id"], rows["png"], strict=True))
    for row in row_ids:
        if row not in pictures:
            raise BadInput(f"site {store.site} has no training row {row}; a second opinion needs its picture")
    wanted = [Wanted(row, 0, DOUBTED, opinions) for row in row_ids]
    waiting = sa.select(sa.func.count()).select_from(ITEMS).where(ITEMS.c.reason == DOUBTED, ITEMS.c.label.is_(None))
    with store.database.connect() as connection:
        before = connection.scalar(waiting) or 0
    enqueue(store.database, wanted, pictures, again=True)
    with store.database.connect() as connection:
        return (connection.scalar(waiting) or 0) - before


def second_words(store: SiteStore) -> pd.DataFrame:
    """What people said of doubted rows, as lines of a labelling (`SiteStore.write_labels`), how = "again".

    A weight of 0 says that nobody can read the row.
    """
    asked = sa.select(ITEMS.c.row_id, ITEMS.c.label).where(_ANSWERED)
    with store.database.connect() as connection:
        said = dict(connection.execute(asked.order_by(ITEMS.c.item)).tuples().all())
    lines = [(row, max(label, 0), float(label != UNREADABLE), "again") for row, label in said.items()]
    table = pd.DataFrame(lines, columns=["row_id", "label", "weight", "how"])
    return table.astype({"row_id": str, "label": "int64", "weight": "float64", "how": str})
