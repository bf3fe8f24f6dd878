from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from fresh_logs import fresh_log
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from monitoring.health import LATENCY_EDGES_S, Counts, Health, Tick, by_version, health, prune, record

SECONDS = st.floats(0.0005, LATENCY_EDGES_S[-1])


def counted(seconds: Sequence[float] = (), **numbers: int) -> Counts:
    counts = Counts(**numbers)
    for each in seconds:
        counts.took(each)
    return counts


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 3), st.lists(SECONDS, max_size=3), st.integers(0, 9)),
        max_size=12,
    )
)
@examples(max_examples=15, deadline=None)
def test_the_sum_over_replicas_is_what_each_counted_however_often_a_tick_is_written(
    told: list[tuple[str, int, list[float], int]],
) -> None:
    ticks = [
        Tick(replica, number, 100.0 + number, {version: counted(seconds, errors=errors, rows=len(seconds))})
        for number, (replica, version, seconds, errors) in enumerate(told)
    ]
    with fresh_log() as log:
        for again in (ticks, ticks[:3], ticks):
            record(log.engine, again)
        whole = health(log.engine, 0.0, 1000.0)
        assert whole.counts.answered == whole.counts.rows == sum(len(seconds) for _, _, seconds, _ in told)
        assert whole.counts.errors == sum(errors for *_, errors in told)
        parts = [health(log.engine, 0.0, 1000.0, version).counts for version in (1, 2, 3)]
        assert sum(part.errors for part in parts) == whole.counts.errors
        assert [sum(bucket) for bucket in zip(*(p.latency for p in parts), strict=True)] == whole.counts.latency
        early, late = health(log.engine, 0.0, 105.0), health(log.engine, 105.0, 1000.0)
        assert early.counts.errors + late.counts.errors == whole.counts.errors


@given(st.lists(SECONDS, min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_of_the_latency_is_within_a_bucket_of_the_true_one(seconds: list[float], quantile: float) -> None:
    true = sorted(seconds)[math.ceil(quantile * len(seconds)) - 1]
    found = Health(counted(seconds)).latency_s(quantile)
    assert true / 1.2501 <= found <= true * 1.2501


def test_a_share_of_nothing_is_none_and_not_zero() -> None:
    nothing = Health(Counts())
    assert (nothing.error_share, nothing.abstained_share, nothing.unavailable_share) == (None, None, None)
    assert math.isnan(nothing.latency_s(0.5))
    some = Health(counted([0.01] * 6, errors=2, unavailable=1, refused=1, rows=8, abstained=2))
    assert (some.requests, some.error_share, some.abstained_share) == (10, 0.25, 0.25)
    assert (some.unavailable_share, some.refused_share) == (pytest.approx(0.1), pytest.approx(0.1))


def test_old_ticks_go_and_the_others_stay() -> None:
    with fresh_log() as log:
        record(log.engine, [Tick("a", n, float(n), {1: counted(errors=1)}) for n in range(10)])
        assert prune(log.engine, 4.0) == 4
        assert by_version(log.engine, -1.0, 100.0)[None].counts.errors == 6
