"""The asynchronous server: the next reports, from whichever version they started; nobody is lost between rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from pipelines.federated.buffered import Buffering, gather_buffered
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import KEYBOARD_COHORT, Abandoned, Cohort, Committed
from pipelines.federated.fleet import Fleet
from pipelines.federated.gathering import Gathering
from pipelines.federated.sessions import SessionCost

COHORT = replace(KEYBOARD_COHORT, goal=20)


def counts(ids: np.ndarray) -> np.ndarray:
    return 5 + ids * 2654435761 % 200


def run(
    rounds: int,
    concurrency: int = 60,
    staleness: int = 20,
    cohort: Cohort = COHORT,
    fleet: Fleet | None = None,
    clock: Clock | None = None,
    work: float = 1.0,
    first: int = 1,
) -> Iterator[tuple[Gathering, Clock]]:
    fleet, clock, cost = fleet or Fleet(10**6), clock or Clock(), SessionCost(5.6e6, 5.6e6, work=work)
    for number in range(first, first + rounds):
        gathering, clock = gather_buffered(
            fleet, cohort, Buffering(concurrency, staleness), counts, cost, 7, number, clock
        )
        yield gathering, clock


@settings(deadline=None, max_examples=15)
@given(
    concurrency=st.integers(10, 200),
    staleness=st.integers(0, 4),
    work=st.sampled_from([0.5, 5.0, 20.0]),
    hour=st.integers(0, 23),
)
def test_nobody_is_lost_seats_are_kept_and_staleness_is_bounded(
    concurrency: int, staleness: int, work: float, hour: int
) -> None:
    before = Clock(now_s=hour * 3600.0)
    for gathering, clock in run(6, concurrency, staleness, work=work, clock=before):
        assert gathering.carried == len(before.flights)
        assert gathering.carried + gathering.selected == sum(gathering.sessions.values()) + gathering.in_flight
        assert gathering.in_flight == len(clock.flights) <= concurrency
        assert len(np.unique(clock.flights.ids)) == len(clock.flights)
        assert (clock.flights.ends_s >= clock.now_s).all()
        assert clock.now_s == gathering.ended_s >= before.now_s
        assert gathering.sessions["finished"] == len(gathering.ids) <= COHORT.goal
        assert ((gathering.staleness >= 0) & (gathering.staleness <= staleness)).all()
        assert gathering.weights() == pytest.approx((1 + gathering.staleness) ** -0.5)
        assert isinstance(gathering.outcome, Committed) == (len(gathering.ids) >= 16)
        before = clock


def test_slow_devices_report_later_versions_stale() -> None:
    rounds = list(run(30, concurrency=100, work=10.0))
    staleness = np.concatenate([gathering.staleness for gathering, _ in rounds[10:]])
    assert staleness.max() > 1
    slow = [Fleet(10**6).traits(g.ids).speed[g.staleness > np.median(staleness)] for g, _ in rounds[10:]]
    fast = [Fleet(10**6).traits(g.ids).speed[g.staleness <= np.median(staleness)] for g, _ in rounds[10:]]
    assert np.median(np.concatenate(slow)) < np.median(np.concatenate(fast))


def test_no_device_works_twice_at_once_or_contributes_twice_a_day() -> None:
    seen: set[int] = set()
    for gathering, clock in run(40, fleet=Fleet(20_000)):
        reported = set(gathering.ids.tolist())
        assert len(reported) == len(gathering.ids)
        assert not reported & seen
        seen |= reported
        assert not seen & set(clock.flights.ids.tolist())
    assert len(seen) >= 40 * 16


def test_a_clock_from_a_checkpoint_continues_bit_identically_with_devices_in_flight() -> None:
    whole = list(run(10))
    stored = {name: array.copy() for name, array in whole[4][1].arrays().items()}
    assert len(stored["flights.ids"]) > 0
    for (one, clock), (other, again) in zip(whole[5:], run(5, clock=Clock.from_arrays(stored), first=6), strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.versions, other.versions)
        assert one.figures() == other.figures()
        for name, array in clock.arrays().items():
            assert array.tobytes() == again.arrays()[name].tobytes(), name


def test_a_server_that_nobody_comes_to_waits_a_day_and_abandons() -> None:
    (gathering, clock), *_ = run(1, fleet=Fleet(25))
    assert isinstance(gathering.outcome, Abandoned)
    assert "in 24 hours" in gathering.outcome.reason
    assert clock.now_s == pytest.approx(86_400.0)
    with pytest.raises(BadInput, match="concurrency"):
        Buffering(0)
