from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.findings import Finding, MonitorPolicy, Share, amiss, risen

POLICY = MonitorPolicy()


def risen_to(hits: int, rows: int, usual: Share, checks: int = 10) -> bool:
    return risen("duplicates", "overall", Share(hits, rows), usual, POLICY, checks, "pictures came before").odd


@given(st.integers(0, 40), st.integers(1, 4000), st.integers(1, 400))
def test_a_share_that_did_not_rise_is_never_odd(hits: int, reference: int, rows: int) -> None:
    usual = Share(min(hits, reference), reference)
    assert not risen_to(int(usual.value * rows), rows, usual)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("reference", [30, 1000])
def test_chance_alone_is_odd_as_seldom_as_promised_also_with_a_small_reference(rate: float, reference: int) -> None:
    rng, rows, trials = np.random.default_rng(1), 200, 3000
    often = MonitorPolicy(false_alarm_per_window=0.05, smallest_rise=1e-9)
    odd = sum(
        risen("m", "s", Share(int(now), rows), Share(int(was), reference), often, 1, "").odd
        for now, was in zip(rng.binomial(rows, rate, trials), rng.binomial(reference, rate, trials), strict=True)
    )
    assert odd / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_a_camera_that_hangs_is_odd() -> None:
    assert risen_to(30, 40, Share(0, 300))
    assert risen_to(39, 40, Share(400, 4000))
    assert not risen_to(1, 40, Share(0, 300))


def test_each_monitor_says_one_sentence_about_its_worst_site() -> None:
    found = [
        Finding("duplicates", "overall", 0.3, 0.0, True, "overall: 30"),
        Finding("duplicates", "site-1", 0.4, 0.0, True, "site-1: 40"),
        Finding("duplicates", "site-2", 0.9, 0.0, True, "site-2: 90"),
        Finding("unreadable", "overall", 0.2, 0.0, True, "overall: 20"),
        Finding("out of range", "overall", 0.0, 0.0, False, "overall: 0"),
    ]
    assert amiss(asdict(each) for each in found) == ["site-2: 90, and so at 1 more sites", "overall: 20"]
