"""Rows that a model left to people: onto the desk of their site, and back as labels.

In: the log's rows with a reason in `abstained`. Out: items in the site's queue, where people are asked for labels at
all, and a delayed label, of the source `desk`, for each that they have settled.
"""

from __future__ import annotations

import time
from contextlib import suppress

import sqlalchemy as sa

from models.errors import FedloopError
from monitoring.database import PREDICTIONS
from monitoring.traffic import Conflict, Label, TrafficLog
from pipelines.federated.queue import ABSTAINED, Wanted, enqueue
from pipelines.federated.site_tables import ITEMS
from pipelines.gather import site_stores
from pipelines.settings import Settings

SOURCE = "desk"
NEWEST = 500  # rows of a site that are looked at for answers from its desk
RECENT = 20_000  # rows of the log in which they are looked for, so that a pass does not cost the log


def to_desks(settings: Settings) -> dict[str, int]:
    """One pass, which may be repeated; returns how many rows were put on the desk of each site.

    The newest ones, of which `service.abstain_queue` wait at a site at once. Without a desk they are in the log alone.
    """
    if settings.labels.annotator != "desk":
        return {}
    put = {}
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        for site, store in site_stores(settings).items():
            rows = left_to_people(log, site)
            known, database = store.annotations(), store.database
            for row in rows:
                if row.image_hash in known:
                    with suppress(Conflict):  # the label was corrected since, and the first one stands
                        log.label_all([Label(row.prediction_id, known[row.image_hash], SOURCE, time.time())])
            mine = sa.select(ITEMS.c.row_id, ITEMS.c.label).where(ITEMS.c.reason.startswith(ABSTAINED))
            with database.connect() as connection:
                asked = {item.row_id: item.label for item in connection.execute(mine)}
            free = settings.service.abstain_queue - sum(label is None for label in asked.values())
            new = {row.image_hash: row for row in rows if row.image_hash not in asked and row.image_hash not in known}
            wanted, pictures = [], {}
            for name, row in list(new.items())[: max(0, free)]:
                with suppress(FedloopError):  # its picture is gone
                    pictures[name] = log.image(name)
                    wanted.append(Wanted(name, 0, f"{ABSTAINED} ({row.abstained})"))
            if wanted:
                enqueue(database, wanted, pictures, more=True)
                put[site] = len(wanted)
    finally:
        log.close()
    return put


def left_to_people(log: TrafficLog, site: str) -> list[sa.Row[tuple[str, str, str]]]:
    """The newest rows of a site that a model abstained from, newest first: prediction_id, image_hash, abstained."""
    p = PREDICTIONS.c
    recent = p.seq > log.last_seq() - RECENT
    chosen = sa.select(p.prediction_id, p.image_hash, p.abstained).where(
        p.site == site, recent, p.abstained.is_not(None)
    )
    with log.engine.connect() as connection:
        return list(connection.execute(chosen.order_by(p.seq.desc()).limit(NEWEST)))
