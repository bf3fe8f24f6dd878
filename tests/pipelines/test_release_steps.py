"""Release by steps: what moves a version on, what holds it, and that a pass may die anywhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from live_service import register_untrained, settings_in
from side_rows import Row, fill

from models.errors import Missing
from monitoring import health, moves
from monitoring.database import MOVES
from monitoring.health import Counts, Tick
from monitoring.traffic import TrafficLog
from pipelines import registry, release, steps
from pipelines.registry import CHALLENGER, CHAMPION, FALLBACK, STEP
from pipelines.settings import ReleaseSettings, Settings

QUICK = ReleaseSettings(
    shadow_rows=60, shadow_s=0, canary_rows=40, canary_s=0, probation_rows=80, probation_s=0, patience_s=1000
)
GOOD: Row = (False, 1, 0, 1)
BAD: Row = (False, 1, 0, 0)
SAME: Row = (False, 1, 1, None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Settings:
    """A home with four versions in its registry, of which the first serves."""
    made = settings_in(tmp_path_factory.mktemp("prepared"), empty_registry)
    for number in range(1, 5):
        register_untrained(made, number)
    assert steps.begin(made, 1, "first") == "version 1 is champion"
    return made


@pytest.fixture
def settings(prepared: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(prepared.home, tmp_path / "home")
    return prepared.model_copy(update={"home": tmp_path / "home", "release": QUICK})


@pytest.fixture
def log(settings: Settings) -> Iterator[TrafficLog]:
    """Version 2 has passed the gate."""
    opened = TrafficLog.open(settings.database_url, settings.images)
    registry.set_alias(settings, CHALLENGER, 2)
    assert steps.begin(settings, 2, "better") == "version 2 goes into shadow beside version 1"
    yield opened
    opened.close()


def path(log: TrafficLog, version: int = 2) -> list[str]:
    return [move.to_step for move in moves.history(log.engine) if move.version == version]


def serving(settings: Settings) -> tuple[int | None, ...]:
    found = [registry.by_alias(settings, alias) for alias in (CHAMPION, FALLBACK, CHALLENGER)]
    return tuple(None if each is None else each.number for each in found)


def answered(rows: list[Row]) -> list[Row]:
    """The same rows, answered by the new version."""
    return [(True, *row[1:]) for row in rows]


def test_a_good_version_goes_through_every_step_and_settles(settings: Settings, log: TrafficLog) -> None:
    assert steps.advance(settings) == []  # nothing was seen of it yet
    fill(log, [GOOD] * 30 + [SAME] * 29, 2, 1)
    assert steps.advance(settings) == []
    fill(log, [SAME], 2, 1)
    assert steps.advance(settings) == [
        "version 2 answers 20% of the sites: 60 rows, agreement 0.50, right 1.000 against 0.000 on 30 labels"
    ]
    assert serving(settings) == (1, None, 2)
    fill(log, [GOOD] * 500 + answered([SAME] * 39), 2, 1)
    assert steps.advance(settings) == []  # rows that the champion answered are no canary
    fill(log, answered([SAME]), 2, 1)
    assert "version 2 is champion, on probation" in steps.advance(settings)[0]
    assert serving(settings) == (2, 1, None)
    fill(log, answered([SAME] * 80), 2, 1)
    assert "version 2 is settled" in steps.advance(settings)[0]
    assert steps.advance(settings) == []
    assert path(log) == ["shadow", "canary", "champion", "settled"]
    last = moves.history(log.engine)[-1]
    assert (last.from_step, last.figures["rows"], last.from_seq) == ("champion", 80, 680)
    assert registry.version(settings, 2).tags[STEP] == "settled"
    assert [(row.version, row.previous) for row in release.history(settings)] == [(1, None), (2, 1)]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([BAD] * 40, "it is right on 0.000 of 40 labels, and the other on 1.000"),
        ([(False, None, 1, None)] * 5 + [SAME] * 35, "it failed on 5 of 40 rows"),
        ([(False, 1, 0, None)] * 90, "it agrees with the other on 0.00 of 90 rows only"),
    ],
)
@pytest.mark.parametrize("where", ["shadow", "canary", "champion"])
def test_a_bad_version_is_held_or_rolled_back(
    settings: Settings, log: TrafficLog, where: str, rows: list[Row], why: str
) -> None:
    if where != "shadow":
        fill(log, [SAME] * 60, 2, 1)
        steps.advance(settings)
    if where == "champion":
        fill(log, answered([SAME] * 40), 2, 1)
        steps.advance(settings)
        fill(log, answered([SAME] * 5), 2, 1)
    assert path(log)[-1] == where
    fill(log, answered(rows) if where == "champion" else rows, 2, 1)
    said = steps.advance(settings)[0]
    assert serving(settings)[0] == 1
    if where == "champion":
        assert path(log)[-1] == "rolled back"
        assert "version 2 is rolled back to 1" in said
        assert "by itself" in registry.version(settings, 2).tags["fedloop.rolled_back"]
    else:
        assert path(log)[-1] == "held"
        assert said == f"version 2 is held in {where}: {why}"
    assert "it was" in steps.begin(settings, 2, "the same weights again")
    assert steps.advance(settings) == []


def test_a_slow_version_is_held(settings: Settings, log: TrafficLog) -> None:
    fill(log, [SAME] * 40, 2, 1, slower=2.5)
    assert steps.advance(settings) == [
        "version 2 is held in shadow: it takes 2.5 times as long as the other on the same rows"
    ]


@pytest.mark.parametrize(
    ("counts", "before", "why"),
    [
        (Counts(answered=95, errors=5), Counts(answered=100), "5 of 100 requests failed, with the other version 0.0%"),
        (Counts(answered=95, errors=5), Counts(answered=95, errors=5), ""),
        (Counts(rows=100, abstained=30), Counts(rows=100, abstained=2), "30 of 100 rows were abstained from"),
        (Counts(rows=100, abstained=8), Counts(rows=100, abstained=2), ""),
    ],
)
def test_a_champion_whose_requests_fare_worse_is_rolled_back(
    settings: Settings, log: TrafficLog, counts: Counts, before: Counts, why: str
) -> None:
    promoted = time.time()
    health.record(log.engine, [Tick("replica", 1, promoted - 5.0, {1: before})])
    release.promote(settings, 2, "by hand")
    health.record(log.engine, [Tick("replica", 2, time.time() + 1.0, {2: counts})])
    said = steps.advance(settings, time.time() + 60.0)
    assert (why in said[0] and path(log)[-1] == "rolled back") if why else said == []


def test_what_turns_bad_late_is_seen_in_the_newest_window(settings: Settings, log: TrafficLog) -> None:
    settings.release = QUICK.model_copy(update={"probation_rows": 5000})
    release.promote(settings, 2, "by hand")
    fill(log, answered([(False, 1, 1, 1)] * 4000), 2, 1)
    assert steps.advance(settings) == []
    fill(log, answered([BAD] * 60), 2, 1)  # 1.5% of all rows, within the margin of two points
    assert "version 2 is rolled back to 1" in steps.advance(settings)[0]


def test_labels_that_speak_against_it_but_not_surely_make_it_wait_and_patience_ends(
    settings: Settings, log: TrafficLog
) -> None:
    fill(log, [BAD] * 3 + [(False, 1, 1, 1)] * 57, 2, 1)
    assert steps.advance(settings) == []
    assert path(log) == ["shadow"]
    assert "too little was seen of it within 0 hours" in steps.advance(settings, time.time() + 1001)[0]
    assert path(log) == ["shadow", "held"]


def test_a_newer_version_takes_the_place_and_a_refused_one_only_the_name(settings: Settings, log: TrafficLog) -> None:
    assert steps.on_its_way(settings) == "version 2 is in shadow already"
    registry.set_alias(settings, CHALLENGER, 3)  # the gate held it: it is the challenger by name
    assert serving(settings) == (1, None, 3)
    steps.advance(settings)
    assert serving(settings) == (1, None, 2)
    steps.begin(settings, 4, "better still")
    assert path(log) == ["shadow", "ended"]
    assert path(log, 4) == ["shadow"]
    assert registry.version(settings, 2).tags[STEP] == "ended"
    assert steps.begin(settings, 2, "once more") == "version 2 goes into shadow beside version 1"


def test_nobody_is_promoted_over_a_champion_on_probation(settings: Settings, log: TrafficLog) -> None:
    release.promote(settings, 2, "by hand")
    registry.set_alias(settings, CHALLENGER, 3)
    steps.begin(settings, 3, "better")
    fill(log, [SAME] * 60, 3, 2)
    steps.advance(settings)
    fill(log, answered([SAME] * 60), 3, 2)
    assert steps.advance(settings) == []
    assert serving(settings) == (2, 1, 3)
    fill(log, answered([SAME] * 80), 2, 1)
    settled, promoted = steps.advance(settings)
    assert "version 2 is settled" in settled
    assert "version 3 is champion" in promoted
    assert serving(settings) == (3, 2, None)


def test_a_person_holds_and_rolls_back(settings: Settings, log: TrafficLog) -> None:
    assert release.hold(settings, "the ward complains") == 2
    assert steps.on_its_way(settings) is None
    with pytest.raises(Missing, match="no version of 'digits' is in shadow or canary"):
        release.hold(settings, "again")
    assert path(log) == ["shadow", "held"]
    release.promote(settings, 2, "by hand, all the same")
    assert release.rollback(settings, "the ward was right") == 1
    assert path(log) == ["shadow", "held", "champion", "rolled back"]
    assert steps.advance(settings) == []


def test_a_step_of_a_log_that_is_no_more_ends(settings: Settings, log: TrafficLog) -> None:
    registry.tag(settings, 1, {STEP: "champion"})
    with log.engine.begin() as connection:
        connection.execute(sa.delete(MOVES))
    assert steps.advance(settings) == []
    assert [registry.version(settings, number).tags[STEP] for number in (1, 2)] == ["ended", "ended"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", range(7))
@pytest.mark.parametrize("end", ["rolled back", "champion"])
def test_a_pass_killed_anywhere_and_repeated_ends_where_an_unbroken_one_does(
    settings: Settings, log: TrafficLog, monkeypatch: pytest.MonkeyPatch, killed_at: int, end: str
) -> None:
    if end == "champion":
        fill(log, [SAME] * 60, 2, 1)
        steps.advance(settings)
        fill(log, answered([SAME] * 40), 2, 1)
    else:
        release.promote(settings, 2, "by hand")
        fill(log, answered([BAD] * 40), 2, 1)
    count = 0

    def dying(place: object, name: str) -> None:
        real = getattr(place, name)

        def step(*args: object) -> object:
            nonlocal count
            count += 1
            if count == killed_at + 1:
                raise Killed
            return real(*args)

        monkeypatch.setattr(place, name, step)

    for name in ("tag", "set_alias", "drop_alias"):
        dying(registry, name)
    dying(moves, "write")
    dying(release, "_write")
    try:
        steps.advance(settings)
    except Killed:
        assert serving(settings)[0] in (1, 2)  # somebody serves
    monkeypatch.undo()
    steps.advance(settings)
    assert path(log)[-1] == end
    assert path(log).count(end) == 1
    assert serving(settings) == ((1, None, None) if end == "rolled back" else (2, 1, None))
    assert registry.version(settings, 2).tags[STEP] == end
    rows = [(row.version, row.previous) for row in release.history(settings)]
    assert rows == [(1, None), (2, 1), *([(1, 2)] if end == "rolled back" else [])]
