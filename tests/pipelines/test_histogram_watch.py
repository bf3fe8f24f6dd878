"""The whole way on the digits: sites with a champion and references, then new rows at them that nobody sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from live_service import settings_in

from models.camera import low_light
from models.images import read_image
from models.task import Rows
from monitoring.dashboard import Dashboard
from monitoring.database import HISTOGRAM_WINDOWS, connect
from monitoring.findings import MonitorPolicy
from pipelines import challenger, gather, histogram_watch, registry, release
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Answer, Failure, Job
from pipelines.gather import embedded_engine, site_plan, site_stores
from pipelines.ingest import ingest
from pipelines.partition import divide
from pipelines.settings import Settings
from pipelines.summarize import summarize
from pipelines.tracking import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Settings:
    """Five sites with their first rows and references, and an untrained champion."""
    settings = settings_in(tmp_path_factory.mktemp("histograms"), empty_registry)
    settings = settings.model_copy(update={"monitors": MonitorPolicy(histogram_rows=60)})
    material, weights = gather.gather(settings), dict(settings.task.build_model().state_dict())
    summary = summarize(embedded_engine(settings), material.train, 10, 1, 0, directions=0).save(settings.home / "s.npz")
    version = registry.register(
        settings,
        parameters=weights,
        key="untrained",
        tags={f"fedloop.snapshots.{split}": json.dumps(getattr(material, split)) for split in ("train", "evaluation")},
        figures={},
        summary=summary,
        example=np.zeros((2, *settings.task.input.shape), dtype=np.uint8),
        run_id=Run.start(settings, "training", "untrained").run_id,
    )
    challenger.write_references(settings, material, weights, summary, version.number)
    release.promote(settings, version.number, "test")
    return settings


def arrive(settings: Settings, part: slice, dark: float = 0.0) -> int:
    """New rows at the sites, taken by their own cameras; returns how many."""
    task, arrived = settings.task, 0
    pool = task.load().live
    rows = divide(Rows(list(pool.images)[part], list(pool.labels)[part]), site_plan(settings), task, settings.seed)
    for site, own in rows.items():
        if not len(own):
            continue
        images = np.stack([read_image(image, task.input) for image in own.images])
        if dark:
            images = low_light(images, dark, np.random.default_rng(0))
        unlabelled = Rows(list(images), [None] * len(images))
        arrived += ingest(site_stores(settings)[site], task, unlabelled, "train", f"{part}-{dark}").new_rows
    return arrived


def recorded(settings: Settings) -> list[sa.RowMapping]:
    engine = connect(settings.database_url)
    with engine.connect() as connection:
        return list(connection.execute(sa.select(HISTOGRAM_WINDOWS)).mappings())


class OneIsAway(LocalEngine):
    """Sites of which one counts, but its answer is lost on the way."""

    away = ""

    def ask(self, jobs: dict[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:  # type: ignore[override]
        for site, answer in super().ask(jobs):
            yield site, Failure(f"{site}: it is away") if site == self.away else answer


def test_new_rows_are_counted_once_judged_and_shown_though_none_is_seen(made: Settings) -> None:
    assert histogram_watch.look(made) is None  # nothing is new
    first = arrive(made, slice(0, 150))
    report = histogram_watch.look(made)
    assert report is not None
    assert (report.turn, report.odd) == (1, False)
    assert 0.9 * first <= report.scopes[0].rows <= first  # columns that hide a rare bin may tell fewer
    assert histogram_watch.look(made) is None  # all are counted

    few = arrive(made, slice(150, 180), dark=0.75)
    assert few < 60
    assert histogram_watch.look(made) is None  # too few: they wait for more
    rest = arrive(made, slice(180, 330), dark=0.75)
    report = histogram_watch.look(made)
    assert report is not None
    assert (report.turn, report.odd) == (2, True)
    assert 0.9 * (few + rest) <= report.scopes[0].rows <= few + rest
    assert "histograms 2 of version 1" in report.sentence

    rows = recorded(made)
    assert [(row["turn"], row["odd"]) for row in rows] == [(1, 0), (2, 1)]
    told = rows[1]["evidence"]["scopes"]["overall"]["columns"]
    assert told["brightness"]["now"] < told["brightness"]["was"]
    board = Dashboard(made.dashboard, made.model_name)
    shown = [json.loads(path.read_text()) for path in board.snapshots.glob("*.json")]
    assert sorted(each["metadata"]["turn"] for each in shown) == ["1", "2"]


def test_a_look_that_died_before_its_row_is_repeated_with_what_has_come_meanwhile(made: Settings) -> None:
    before = len(recorded(made))
    first = arrive(made, slice(0, 150), dark=0.1)
    lost = histogram_watch.look(made)
    assert lost is not None
    with connect(made.database_url).begin() as connection:  # what a kill before the insert leaves behind
        connection.execute(sa.delete(HISTOGRAM_WINDOWS).where(HISTOGRAM_WINDOWS.c.turn == lost.turn))
    second = arrive(made, slice(150, 200), dark=0.1)
    again = histogram_watch.look(made)
    assert again is not None
    assert again.turn == lost.turn
    assert 0.9 * (first + second) <= again.scopes[0].rows <= first + second
    assert len(recorded(made)) == before + 1


def test_a_site_that_is_away_is_left_out_named_and_heard_in_the_next_turn(made: Settings) -> None:
    arrived = arrive(made, slice(0, 200), dark=0.2)
    engine = OneIsAway(embedded_engine(made).sites)
    engine.away = engine.population[0]
    report = histogram_watch.look(made, engine)
    assert report is not None
    assert f"{engine.away}: it is away" in report.sentence
    assert engine.away not in [scope.scope for scope in report.scopes]
    engine.away = ""
    arrived += arrive(made, slice(200, 250), dark=0.2)
    later = histogram_watch.look(made, engine)
    assert later is not None
    assert later.turn == report.turn + 1
    assert 0.9 * arrived <= report.scopes[0].rows + later.scopes[0].rows <= arrived
