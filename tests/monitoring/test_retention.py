"""Retention forgets what nobody needs, whole windows at a time, and counts what it forgets."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import sqlalchemy as sa
from fresh_logs import Databases, fresh_log
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_rows import NOW, prediction

from models.errors import Missing
from monitoring import alarm, retention
from monitoring.cases import Submission, submit
from monitoring.database import AGGREGATES, LABELS, WINDOWS
from monitoring.pictures import FILE, Pictures
from monitoring.retention import RetentionPolicy, needed_from, plan, prune
from monitoring.traffic import TrafficLog

DAY_S = 86_400.0
ROWS = 10  # of a window


def fill(log: TrafficLog, rows: int, sites: int = 3) -> list[str]:
    """A row an hour, on few pictures; every third is labelled, every sixth rightly."""
    made = [
        replace(prediction(number % 7, NOW + 3600 * number, f"site-{number % sites}"), model_version=1 + number // 25)
        for number in range(rows)
    ]
    log.record(made)
    for number, row in enumerate(made):
        if number % 3 == 0:
            log.label(row.prediction_id, row.prediction if number % 2 else 9, "clinic", NOW)
    return [row.prediction_id for row in made]


def report(log: TrafficLog, windows: int) -> None:
    start = len(alarm.windows(log.engine)) * ROWS + 1
    rest = {"rows": ROWS, "started_at": 0.0, "ended_at": 0.0, "model_version": 1, "odd": 0, "evidence": {}}
    spans = [{"from_seq": low, "to_seq": low + ROWS} for low in range(start, start + windows * ROWS, ROWS)]
    if spans:
        with log.engine.begin() as connection:
            connection.execute(sa.insert(WINDOWS), [span | rest for span in spans])


def age(log: TrafficLog) -> None:
    """As if no picture had been named for two hours."""
    if (log.images / FILE).exists():
        with sqlite3.connect(log.images / FILE) as store:
            store.execute("UPDATE pictures SET kept_at = kept_at - 7200")


def forgotten(log: TrafficLog) -> pd.DataFrame:
    with log.engine.connect() as connection:
        return pd.read_sql(sa.select(AGGREGATES).order_by(AGGREGATES.c.from_seq, AGGREGATES.c.site), connection)


def labels(log: TrafficLog) -> int:
    with log.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(LABELS)).scalar_one())


@given(
    rows=st.integers(1, 90),
    unreported=st.integers(0, 4),
    decision_at=st.none() | st.integers(1, 90),
    newest=st.tuples(st.integers(1, 40), st.integers(1, 4)),
    policy=st.builds(RetentionPolicy, keep_days=st.floats(0, 3.5), keep_gb=st.sampled_from([0, 1e-9, 2e-5, 5e-5])),
    interrupted=st.integers(0, 30),
)
@settings(max_examples=15, deadline=None)
def test_every_row_is_in_the_log_or_in_the_aggregates_and_what_is_needed_is_in_the_log(
    databases: Databases, rows: int, unreported: int, decision_at: int | None, newest: tuple[int, int],
    policy: RetentionPolicy, interrupted: int,
) -> None:  # fmt: skip
    with databases.log() as log, pytest.MonkeyPatch.context() as patch:
        fill(log, rows)
        report(log, max(0, rows // ROWS - unreported))
        case = log.between(0, 10**6)["image_hash"].iloc[0]
        submit(log, [Submission(log.image(case), "cat")])
        age(log)
        if decision_at is not None:
            alarm.record(log.engine, "drift", {"from_seq": decision_at}, 0.0, alarm.AlarmPolicy())
        before, given_labels = log.between(0, 10**6), labels(log)
        needed = needed_from(log.engine, *newest)
        assert needed <= rows - min(rows, newest[0]) + 1
        assert decision_at is None or needed <= decision_at
        assert needed <= max(0, rows // ROWS - unreported) * ROWS + 1
        found = plan(log.engine, policy, needed, now=NOW + 3600 * rows)

        calls = itertools.count()
        remove = Pictures.remove_unless_young

        def killed(store: Pictures, name: str) -> int:
            if next(calls) == interrupted:
                raise KeyboardInterrupt
            return remove(store, name)

        patch.setattr(Pictures, "remove_unless_young", killed)
        try:
            prune(log, found.windows)
        except KeyboardInterrupt:
            patch.undo()
            prune(log, found.windows)
        gone = {seq for window in found.windows for seq in range(window.from_seq, window.to_seq)}
        assert not [seq for seq in gone if seq >= needed]
        after = log.between(0, 10**6)
        kept = before[~before["seq"].isin(gone)].reset_index(drop=True)
        pd.testing.assert_frame_equal(after, kept)
        for name in {*after["image_hash"], case}:
            log.image(name)
        for name in set(before["image_hash"]) - set(after["image_hash"]) - {case}:
            with pytest.raises(Missing):
                log.image(name)
        sums, lost = forgotten(log), before[before["seq"].isin(gone)]
        assert int(sums["rows"].sum()) + len(after) == rows
        assert int(sums["labelled"].sum()) + labels(log) == given_labels
        assert int(sums["correct"].sum()) == int((lost["prediction"] == lost["label"]).sum())
        counted: Counter[str] = Counter()
        for each in sums["predictions"]:
            counted.update(each)
        assert counted == Counter(str(value) for value in lost["prediction"])
        assert len(alarm.windows(log.engine)) == max(0, rows // ROWS - unreported)
        prune(log, found.windows)
        pd.testing.assert_frame_equal(forgotten(log), sums)


def test_limits_of_age_and_of_size_say_which_windows_go(databases: Databases) -> None:
    with databases.log() as log:
        fill(log, 100)
        report(log, 10)
        now = NOW + 3600 * 99
        assert plan(log.engine, RetentionPolicy(), 101, now).windows == ()
        by_age = plan(log.engine, RetentionPolicy(keep_days=2), 101, now)
        assert [window.from_seq for window in by_age.windows] == [1, 11, 21, 31, 41]  # 51 hours and more
        row = retention.ROW_BYTES + sum(len(prediction(number).png) for number in range(7)) / 7
        by_size = plan(log.engine, RetentionPolicy(keep_gb=35 * row / 1e9), 101, now)
        assert [window.from_seq for window in by_size.windows] == [1, 11, 21, 31, 41, 51, 61]
        assert by_size.over_bytes == 0
        held = plan(log.engine, RetentionPolicy(keep_gb=35 * row / 1e9), 50, now)
        assert len(held.windows) == 4
        assert held.over_bytes == pytest.approx(25 * row, abs=row)


def test_a_service_writes_and_labels_while_the_log_forgets(databases: Databases) -> None:
    with databases.log() as log:
        ids = fill(log, 400)
        report(log, 30)
        age(log)
        done, said = threading.Event(), list[str]()

        def serve() -> None:
            for number in itertools.count(1000):
                log.record([prediction(number % 7, name=f"new-{number}")])  # a picture that retention looks at, too
                said.append(f"new-{number}")
                for key in (ids[(number * 37) % 400], said[-1]):
                    try:
                        log.label(key, 1, f"late-{number}", NOW)
                    except Exception as error:
                        assert "there is no prediction" in str(error)
                if done.is_set() and len(said) > 20:
                    return

        service = threading.Thread(target=serve)
        service.start()
        windows = plan(log.engine, RetentionPolicy(keep_gb=1e-9), 301).windows
        removed = prune(log, windows)
        done.set()
        service.join()
        assert (removed.windows, removed.rows) == (30, 300)
        rows = log.between(0, 10**6)
        assert rows["prediction_id"].tolist() == ids[300:] + said
        for name in rows["image_hash"].unique():
            log.image(name)
        with log.engine.connect() as connection:
            labelled = set(connection.execute(sa.select(LABELS.c.prediction_id)).scalars())
        assert labelled <= set(rows["prediction_id"])
        assert int(forgotten(log)["rows"].sum()) == 300


def test_a_label_for_a_row_that_is_forgotten_finds_none() -> None:
    with fresh_log() as log:
        ids = fill(log, 20)
        report(log, 2)
        prune(log, plan(log.engine, RetentionPolicy(keep_gb=1e-9), 11).windows)
        with pytest.raises(Exception, match="there is no prediction"):
            log.label(ids[0], 1, "late", NOW)
        assert log.label(ids[15], 1, "late", NOW) == "stored"
