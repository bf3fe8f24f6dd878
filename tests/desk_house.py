"""A house with a desk for tests: one site with digits to be labelled, in clusters, and tokens for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from live_service import settings_in

from models.images import content_hash, encode_png
from models.task import Rows
from pipelines.federated.queue import Wanted, enqueue
from pipelines.federated.site_tables import open_database
from pipelines.federated.store import SiteStore
from pipelines.federated.tokens import make_token
from pipelines.ingest import ingest
from pipelines.settings import Settings

SITE = "clinic-1"


@dataclass(frozen=True)
class House:
    """rows: what is to be labelled, cluster after cluster. tokens: by person."""

    settings: Settings
    site: str
    store: SiteStore
    database: sa.Engine
    rows: list[str]
    tokens: dict[str, str]

    def bearer(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[who]}"}


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """uint8 [8, 8, 1], no two alike."""
    return list(np.random.default_rng(seed).integers(0, 256, size=(count, 8, 8, 1), dtype=np.uint8))


def desk_house(folder: Path, empty_registry: Path, clusters: int, each: int) -> House:
    """A house with one site."""
    return add_site(settings_in(folder, empty_registry), SITE, clusters, each)


def add_site(settings: Settings, site: str, clusters: int, each: int, wants: int = 1) -> House:
    """A site whose queue wants `each` rows of every cluster; four more of each are its neighbours."""
    store = SiteStore(settings.folder / "sites" / site)
    images = pictures(clusters * (each + 4))
    source = Rows(images, [i % 10 for i in range(len(images))])
    ingest(store, settings.task, source, "train", "test")
    names = [content_hash(encode_png(image)) for image in images]
    pngs = {name: encode_png(image) for name, image in zip(names, images, strict=True)}
    groups = [names[k * (each + 4) : (k + 1) * (each + 4)] for k in range(clusters)]
    wanted = [Wanted(row, k, "typical", wants) for k, group in enumerate(groups) for row in group[:each]]
    database = open_database(store.root)
    enqueue(database, wanted, pngs, {k: group[each:] for k, group in enumerate(groups)})
    tokens = {who: make_token(database, who) for who in ("anna", "ben", "cem")}
    return House(settings, site, store, database, [w.row_id for w in wanted], tokens)
