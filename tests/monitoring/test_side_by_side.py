from __future__ import annotations

import math

import numpy as np
import pytest
from fresh_logs import fresh_log
from hypothesis import given
from hypothesis import strategies as st
from side_rows import Row, fill

from monitoring.side_by_side import bound, pairs, weigh

OLD, NEW = 4, 7

classes = st.integers(0, 2)
row = st.tuples(st.booleans(), st.none() | classes, classes, st.none() | classes)


@given(rows=st.lists(row, max_size=40))
def test_who_answered_makes_no_difference_to_what_is_found(rows: list[Row]) -> None:
    with fresh_log() as log:
        fill(log, rows, NEW, OLD, slower=3.0)
        seen = pairs(log.engine, NEW, OLD, 0)
        assert pairs(log.engine, NEW, 99, 0).empty
    found = weigh(seen, NEW, 0.99)
    both = [(new, old, label) for _, new, old, label in rows if new is not None]
    known = [(new == label, old == label) for new, old, label in both if label is not None]
    assert found.rows == len(rows)
    assert found.failed == len(rows) - len(both)
    assert found.answered == sum(by_new and new is not None for by_new, new, _, _ in rows)
    assert found.labelled == len(known)
    assert math.isnan(found.slower) if len(rows) < 8 else 3.0 <= found.slower_low <= found.slower <= 3.05
    if both:
        assert found.agreement == pytest.approx(np.mean([new == old for new, old, _ in both]))
        assert found.agreement <= found.agreement_high
    if known:
        assert found.gain == pytest.approx(np.mean([int(a) - int(b) for a, b in known]))
        assert found.score - found.score_before == pytest.approx(found.gain)
        assert found.gain <= found.gain_high + 1e-12
    assert all(not isinstance(value, float) or math.isfinite(value) for value in found.figures().values())


def test_few_labels_prove_little_and_many_prove_a_loss() -> None:
    with fresh_log() as log:
        fill(log, [(True, 1, 0, 0)] * 5 + [(True, 0, 0, 0)] * 25, NEW, OLD)
        assert weigh(pairs(log.engine, NEW, OLD, 0), NEW, 0.99).gain_high > 0
        fill(log, [(False, 1, 0, 0)] * 50 + [(True, 0, 0, 0)] * 250, NEW, OLD)
        seen = pairs(log.engine, NEW, OLD, 0)
        assert -0.167 < weigh(seen, NEW, 0.99).gain_high < -0.05
        assert len(pairs(log.engine, NEW, OLD, 330)) == 0
        assert pairs(log.engine, NEW, OLD, 0, rows=10)["seq"].tolist() == list(range(330, 320, -1))


def test_a_bound_is_broken_as_seldom_as_it_says() -> None:
    """The true gain is -10 points: a claim that it is lower still may come in one of a hundred samples."""
    draw, broken = np.random.default_rng(0), 0
    for _ in range(2000):
        differ = int(draw.binomial(200, 0.3))
        lost = int(draw.binomial(differ, 2 / 3))
        high = differ / 200 * (1 - 2 * bound(lost, differ, 0.99, "low"))
        broken += high < 0.3 * (1 - 2 * 2 / 3) * differ / (200 * 0.3)
    assert broken <= 0.015 * 2000
