from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.findings import MonitorPolicy
from monitoring.habit import Habit, Past, SiteTold
from monitoring.volume import HOUR_S, exposure, volume

POLICY = MonitorPolicy()
MONDAY = datetime(2026, 11, 2, tzinfo=UTC).timestamp()


@given(st.floats(0, 2e9), st.floats(0, 13 * 86_400))
def test_every_second_is_in_one_hour(start: float, seconds: float) -> None:
    spans = exposure(start, start + seconds)
    assert sum(spans.values()) == pytest.approx(seconds, abs=1e-3)
    assert all(0 < each <= 14 * HOUR_S for each in spans.values())


def test_hours_are_those_of_the_day_and_weekends_are_apart() -> None:
    assert exposure(MONDAY + 9.5 * HOUR_S, MONDAY + 11 * HOUR_S) == {(False, 9): 1800.0, (False, 10): 3600.0}
    assert exposure(MONDAY - HOUR_S, MONDAY) == {(True, 23): 3600.0}


def clinic(days: int, seed: int = 0) -> Habit:
    """A window an hour: 60 rows by day, 4 by night, a tenth of it on weekends, and more scatter than chance."""
    rng = np.random.default_rng(seed)
    rows = [int(rng.poisson(usual(hour) * rng.gamma(20, 1 / 20))) for hour in range(24 * days)]
    return Habit([Past(MONDAY + (hour + 1) * HOUR_S, {"a": told(own)}) for hour, own in enumerate(rows)])


def usual(hour: int) -> float:
    weekend = (hour // 24) % 7 >= 5
    return (60.0 if 8 <= hour % 24 < 18 else 4.0) * (0.1 if weekend else 1.0)


def told(rows: int) -> SiteTold:
    return SiteTold(rows, 0.0, 0.0, 0.0, 0)


def judged(habit: Habit, rows: int) -> dict[str, bool]:
    start = habit.past[-1].ended_at
    return {f.scope: f.odd for f in volume(start, start + HOUR_S, {"a": rows}, habit, POLICY)}


def test_the_usual_volume_of_an_hour_is_next_to_never_odd_and_a_sixth_of_it_is() -> None:
    odd, wrong = 0, 0
    for hour in range(24 * 7, 24 * 14, 2):
        habit = clinic(15, seed=hour)
        before = Habit(habit.past[:hour])
        now = habit.past[hour].sites["a"].rows
        odd += any(judged(before, now).values())
        if usual(hour) == 60.0:
            wrong += all(judged(before, 10).values())
    assert odd <= 1
    assert wrong >= 24  # of the 25 hours of five days


def test_nobody_judges_an_hour_that_was_not_seen_on_some_days() -> None:
    habit = clinic(2)
    (finding,) = volume(habit.past[-1].ended_at, habit.past[-1].ended_at + HOUR_S, {"a": 0}, habit, POLICY)
    assert (finding.scope, finding.usual, finding.odd) == ("overall", None, False)
    assert volume(10.0, 10.0, {}, Habit([]), POLICY) == []


def test_a_site_that_sends_three_times_as_much_is_named() -> None:
    habit = clinic(12)
    past = [Past(w.ended_at, {"a": w.sites["a"], "b": w.sites["a"]}) for w in habit.past[: 24 * 11 + 9]]
    start = past[-1].ended_at
    found = volume(start, start + HOUR_S, {"a": 60, "b": 190}, Habit(past), POLICY)
    assert [f.scope for f in found if f.odd and f.scope != "overall"] == ["b"]
    assert "190 rows in 1.0 h, usual at this time are 59" in found[2].sentence
