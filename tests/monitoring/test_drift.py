from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from camera_traffic import CameraTraffic
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.calibration import Calibration, calibrate
from monitoring.distance import distance, method_of
from monitoring.drift import (
    COLUMNS,
    OVERALL,
    DriftPolicy,
    ScopeDrift,
    clean,
    compare,
    is_odd,
    mixed_reference,
    report,
)

POLICY = DriftPolicy()
NOISY = Calibration({OVERALL: dict.fromkeys(COLUMNS, 5.0)})


class Judge:
    """Windows judged as pipelines/watch.py does it, without a log."""

    def __init__(self, traffic: CameraTraffic) -> None:
        self.traffic = traffic
        self.reference = {site: clean(rows) for site, rows in traffic.reference.items()}
        self.calibration = calibrate(self.reference, POLICY)

    def __call__(self, window: tuple[pd.DataFrame, np.ndarray]) -> dict[str, ScopeDrift]:
        rows, site = window
        mix = {name: int((site == name).sum()) for name in self.traffic.sites}
        mixed, worth = mixed_reference(self.reference, mix, POLICY.reference_rows)
        seen = {OVERALL: compare(OVERALL, rows, mixed, worth, self.calibration, POLICY)}
        for name, count in mix.items():
            if count >= POLICY.site_minimum_rows:
                own = self.reference[name]
                seen[name] = compare(name, rows[site == name], own, len(own), self.calibration, POLICY)
        return seen

    def odd(self, **kind: object) -> set[str]:
        return {name for name, scope in self(self.traffic.window(**kind)).items() if scope.odd}  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[0, 1])
def judge(request: pytest.FixtureRequest) -> Judge:
    return Judge(CameraTraffic(seed=request.param))


def test_forty_stable_windows_hold_no_two_odd_ones_in_a_row(judge: Judge) -> None:
    odd = [judge.odd() for _ in range(40)]
    assert not any(first & second for first, second in pairwise(odd))
    assert sum(map(bool, odd)) <= 2


def test_a_changed_site_mix_is_not_drift(judge: Judge) -> None:
    odd = [judge.odd(only=["site-1", "site-4"]) for _ in range(8)]
    assert sum(OVERALL in scopes for scopes in odd) == 0


@pytest.mark.parametrize("severity", [0.3, 0.5, 0.7])
def test_low_light_everywhere_is_odd_in_every_window(judge: Judge, severity: float) -> None:
    assert all(OVERALL in judge.odd(dark=severity) for _ in range(5))


def test_low_light_at_one_site_is_odd_there_and_only_there(judge: Judge) -> None:
    for _ in range(5):
        seen = judge(judge.traffic.window(rows=400, dark=0.7, at_sites=["site-2"]))
        assert seen["site-2"].odd
        assert {name for name, scope in seen.items() if scope.odd} <= {OVERALL, "site-2"}


def test_a_half_dark_window_is_odd(judge: Judge) -> None:
    bright, dark = judge.traffic.window(rows=125), judge.traffic.window(rows=125, dark=0.7)
    assert judge((pd.concat([bright[0], dark[0]], ignore_index=True), np.concatenate([bright[1], dark[1]])))[
        OVERALL
    ].odd


def test_the_bound_on_false_alarms_holds_on_fresh_draws_from_the_reference() -> None:
    """Without the safety factor the calibration must do what it says: at most one window in a hundred is odd."""
    policy, rng = DriftPolicy(safety=1.0, window_rows=200), np.random.default_rng(3)

    def truth(rows: int) -> pd.DataFrame:
        return clean(frame(rows, int(rng.integers(2**31))))

    odd = 0
    for _ in range(3):
        reference = {"a": truth(500)}
        calibration = calibrate(reference, policy)
        for _ in range(50):
            odd += compare(OVERALL, truth(200), reference["a"], 500, calibration, policy).odd
    assert odd <= 6  # of 150; the bound says 1.5 on average, four standard errors above is 6.4


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=40),
    st.lists(st.floats(-5, 5), min_size=2, max_size=40),
    st.floats(0.1, 3),
)
@settings(max_examples=50, deadline=None)
def test_the_distance_does_not_know_units_and_is_zero_to_itself(a: list[float], b: list[float], unit: float) -> None:
    x, y = pd.Series([*a, -5.0, 5.0]), pd.Series(b)
    assert distance(x, x) == 0.0
    assert distance(x * unit + 1, y * unit + 1) == pytest.approx(distance(x, y), rel=1e-3, abs=1e-9)


@given(st.lists(st.floats(0, 10), min_size=8, max_size=8))
def test_two_columns_or_one_by_far_make_a_window_odd(ratios: list[float]) -> None:
    assert is_odd(ratios, POLICY) == (sorted(ratios)[-2] > 1 or max(ratios) > 3)


def test_thresholds_shrink_with_the_root_of_the_rows_down_to_the_smallest_effect() -> None:
    calibration = Calibration({OVERALL: {"noise": 4.0}})
    assert calibration.threshold(POLICY, OVERALL, "noise", 100, 1e9) == pytest.approx(0.4)
    assert calibration.threshold(POLICY, OVERALL, "noise", 400, 1e9) == pytest.approx(0.2)
    assert calibration.threshold(POLICY, OVERALL, "noise", 10**6, 1e9) == POLICY.minimum_effect


def test_the_same_reference_gives_the_same_thresholds() -> None:
    reference = {site: clean(rows) for site, rows in CameraTraffic(seed=4).reference.items()}
    assert calibrate(reference, POLICY) == calibrate(reference, POLICY)
    mix = {"site-1": 70, "site-2": 180}
    pd.testing.assert_frame_equal(mixed_reference(reference, mix, 777)[0], mixed_reference(reference, mix, 777)[0])


def test_a_mixed_reference_has_the_windows_proportions_and_an_honest_worth() -> None:
    reference = {"a": pd.DataFrame({"noise": np.zeros(300)}), "b": pd.DataFrame({"noise": np.ones(40)})}
    mixed, worth = mixed_reference(reference, {"a": 50, "b": 150, "stranger": 99}, 1000)
    assert mixed["noise"].mean() == pytest.approx(0.75, abs=0.002)
    assert 40 < worth < 80  # a hundred copies of 40 rows are still 40 rows


# -- Evidently ------------------------------------------------------------------------------------------------


def frame(rows: int, seed: int = 0, **columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values: dict[str, object] = {name: rng.normal(0.3, 0.05, rows) for name in COLUMNS[:6]}
    values |= {"confidence": rng.beta(8, 1, rows), "prediction": rng.integers(0, 10, rows)}
    return pd.DataFrame(values | columns)


def told(current: pd.DataFrame, reference: pd.DataFrame) -> tuple[ScopeDrift, dict[str, dict]]:
    here, there = clean(current), clean(reference)
    drift = compare(OVERALL, here, there, len(there), NOISY, POLICY)
    made = report(drift, here, there, at=0.0)
    return drift, {} if made is None else {m["config"]["column"]: m for m in made.dict()["metrics"]}


@pytest.mark.parametrize("reference_rows", [200, 1500])
def test_methods_and_thresholds_are_the_same_below_and_above_a_thousand_reference_rows(reference_rows: int) -> None:
    """Left alone, Evidently changes from p-values to distances at 1,000 rows."""
    drift, metrics = told(frame(250, 1), frame(reference_rows))
    assert set(metrics) == set(COLUMNS)
    for column in drift.columns:
        config = metrics[column.column]["config"]
        assert config["method"] == method_of(clean(frame(10))[column.column])
        assert config["threshold"] == column.threshold
        assert metrics[column.column]["value"] == pytest.approx(column.value)  # our cheap figure is Evidently's


@pytest.mark.parametrize(
    ("what", "broken", "fate"),
    [
        ("all missing", np.nan, "missing"),
        ("all infinite", np.inf, "missing"),
        ("words", "dark", "missing"),
        ("constant", 0.3, "compared"),
        ("numbers as text", "0.3", "compared"),
    ],
)
def test_columns_that_evidently_cannot_take_are_judged_and_do_not_raise(what: str, broken: object, fate: str) -> None:
    drift, metrics = told(frame(250, 1, noise=[broken] * 250), frame(500))
    noise = next(column for column in drift.columns if column.column == "noise")
    assert ("noise" in metrics) == (fate == "compared")
    assert len(metrics) >= len(COLUMNS) - 1
    if fate == "missing":
        assert drift.odd
        assert noise.what == "the share of missing noise"
        assert noise.now == 1.0


def test_a_tenth_of_the_values_missing_passes_and_half_of_them_is_drift() -> None:
    for share, odd in ((0.08, False), (0.5, True)):
        values = np.random.default_rng(2).normal(0.3, 0.05, 250)
        values[: int(250 * share)] = np.nan
        assert told(frame(250, 1, noise=values), frame(2000))[0].odd == odd


def test_a_column_that_is_constant_on_both_sides_is_no_drift() -> None:
    drift, metrics = told(frame(250, 1, saturation=0.0), frame(500, saturation=0.0))
    assert metrics["saturation"]["value"] == 0.0
    assert not drift.odd


def test_nothing_to_compare_gives_no_report() -> None:
    assert told(frame(0), frame(500))[1] == {}
    assert told(frame(250), frame(0))[1] == {}
