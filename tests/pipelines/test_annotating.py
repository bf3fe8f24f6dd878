"""The loop and people: it waits for them, goes on without them when its patience is over, and asks nothing twice."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from live_service import settings_in
from tiny_sites import TINY, make_site

from pipelines import annotating, gather, loop
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.queue import People
from pipelines.federated.site import Site
from pipelines.federated.site_tables import ITEMS, open_database
from pipelines.federated.store import SiteStore
from pipelines.federated.votes import take, vote
from pipelines.label import Labelling, label
from pipelines.settings import LabelSettings, Settings

SIZES = {"a": 40, "b": 50}
ROWS = sum(SIZES.values())


class Fleet:
    """Sites whose annotators are people."""

    def __init__(self, root: Path) -> None:
        self.snapshots: dict[str, tuple[str, ...]] = {}
        sites = {}
        for i, (name, size) in enumerate(SIZES.items()):
            made, self.snapshots[name], _ = make_site(root, name, size, seed=i)
            sites[name] = Site(TINY, made.store, People())
        self.engine = LocalEngine(sites)
        self.stores = [site.store for site in sites.values()]

    def buy(self, patience_s: float = 0.0, opinions: int = 1) -> Labelling:
        options = LabelSettings(
            budget_share=0.2, lloyd_rounds=2, annotator="desk", opinions=opinions, patience_s=patience_s
        )
        return label(self.engine, self.snapshots, ROWS, options, 0)


def work(store: SiteStore, who: str, sheets: int | None = None) -> int:
    """A person who knows the truth and labels sheet after sheet; how many rows it were."""
    database, done = open_database(store.root), 0
    while sheets is None or sheets > 0:
        if (sheet := take(database, who)) is None:
            break
        truth = store.truth([each.row_id for each in sheet.items])
        assert not vote(
            database, who, {each.item: int(truth[each.row_id]) for each in sheet.items}, f"{who}-{sheet.items[0]}"
        )
        done += len(sheet.items)
        sheets = None if sheets is None else sheets - 1
    return done


def queued(stores: list[SiteStore]) -> int:
    count = 0
    for store in stores:
        with open_database(store.root).connect() as connection:
            count += connection.scalar(sa.select(sa.func.count()).select_from(ITEMS)) or 0
    return count


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotating, "ASK_EVERY_S", 0.05)


@pytest.mark.parametrize("opinions", [1, 2])
def test_the_loop_waits_until_people_are_done(tmp_path: Path, opinions: int) -> None:
    fleet = Fleet(tmp_path)
    finished = []
    waiting = threading.Thread(target=lambda: finished.append(fleet.buy(60.0, opinions)))
    waiting.start()
    while queued(fleet.stores) < 18:
        time.sleep(0.02)
    for who in ("anna", "ben")[:opinions]:
        assert waiting.is_alive(), "it did not wait for the second opinion"
        for store in fleet.stores:
            assert work(store, who) > 0
    waiting.join(60)
    (done,) = finished
    assert (done.bought, done.newly_bought, done.pending) == (18, 18, 0)
    assert done.spread > 0
    assert done.accuracy > 0.9


def test_when_patience_is_over_it_goes_on_with_what_there_is_and_asks_nothing_twice(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    empty = fleet.buy()
    assert (empty.bought, empty.spread, empty.pending) == (0, 0, 18)
    some = work(fleet.stores[0], "anna", sheets=2)
    half = fleet.buy(0.1)
    assert (half.bought, half.pending) == (some, 18 - some)
    assert half.id != empty.id
    for store in fleet.stores:
        work(store, "anna")
    whole = fleet.buy(0.1)
    assert (whole.bought, whole.pending) == (18, 0)
    assert fleet.buy().id == whole.id
    assert queued(fleet.stores) == 18


def test_an_unfinished_labelling_is_not_kept_as_done(
    tmp_path: Path, empty_registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = settings_in(tmp_path, empty_registry)
    people = {"annotator": "desk", "patience_s": 0.0}
    settings = base.model_copy(update={"labels": base.labels.model_copy(update=people)})
    material = gather.gather(settings)

    def buy(settings: Settings = settings) -> loop.Labelled:
        found = loop.buy_labels(settings, material)
        assert found is not None
        return found

    first = buy()
    assert (first.bought, first.reused) == (0, False)
    assert first.pending > 50
    stores = list(gather.site_stores(settings).values())
    work(stores[0], "anna", sheets=1)
    second = buy()
    assert not second.reused
    assert second.bought > 0
    for store in stores:
        work(store, "anna")
    third = buy()
    assert (third.pending, third.bought, third.reused) == (0, first.pending, False)
    patient = settings.model_copy(update={"labels": settings.labels.model_copy(update={"patience_s": 9.0})})
    with caplog.at_level(logging.INFO, logger="fedloop"):
        again = buy(patient)
    assert again.reused, "how long one would have waited is no reason to label again"
    assert again.id == third.id
