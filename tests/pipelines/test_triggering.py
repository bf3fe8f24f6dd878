"""A threshold is chosen from sums alone, keeps what it was asked to keep, and does live what was predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console

from models.errors import BadInput
from models.keyboard import Keyboard
from models.population import Ragged
from models.scores import Scores
from models.suggestions import Truth
from pipelines.triggering import Histogram, choose_threshold, compared, curve, go_live, reported, survey
from pipelines.triggering_plot import picture

FLEET = Keyboard(100_000, seed=8)
TRUTH = Truth.on(0, 0.0)


def linear(x: torch.Tensor) -> torch.Tensor:
    """The linear part of the truth: about as good as training gets."""
    return (x @ TRUTH.weights - 2.0)[:, None]


counts = arrays(np.int64, 40, elements=st.integers(0, 50))


@settings(deadline=None)
@given(counts, counts, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_chosen_threshold_keeps_what_it_must_and_no_other_has_a_higher_rate(
    others: np.ndarray, clicks: np.ndarray, keep_clicks: float, keep_shown: float
) -> None:
    histogram = Histogram(others + clicks, clicks)
    if not clicks.sum():
        with pytest.raises(BadInput, match="no click"):
            choose_threshold(histogram, keep_clicks, keep_shown)
        return
    chosen = choose_threshold(histogram, keep_clicks, keep_shown)
    assert chosen.kept >= keep_clicks
    assert chosen.shown >= keep_shown
    assert chosen.uplift >= 0
    for point in curve(histogram):
        if point.kept >= keep_clicks and point.shown >= keep_shown:
            assert point.ctr <= chosen.ctr


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 99_999), min_size=2, max_size=12, unique=True), st.data())
def test_devices_histograms_add_up_to_that_of_all(ids: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(ids) - 1))
    whole = survey(linear, FLEET, np.array(ids))
    parts = survey(linear, FLEET, np.array(ids[:cut])) + survey(linear, FLEET, np.array(ids[cut:]))
    assert (whole.proposals == parts.proposals).all()
    assert (whole.clicks == parts.clicks).all()
    assert whole.proposals.sum() == FLEET.held_out(np.array(ids)).counts.sum()


def test_only_the_devices_own_rows_of_a_shared_block_count() -> None:
    x, y = torch.zeros(10, 64), torch.ones(10, dtype=torch.int64)
    block = Ragged(x, y, np.array([2, 7]), np.array([3, 1]))
    found = reported(linear, block)
    assert (found.proposals.sum(), found.clicks.sum()) == (4, 4)


def test_the_histogram_tells_what_the_rows_would() -> None:
    ids = np.arange(3000)
    chosen = choose_threshold(survey(linear, FLEET, ids), keep_clicks=0.8)
    rows = FLEET.held_out(ids)
    shown = torch.sigmoid(linear(rows.x)[:, 0].double()) >= chosen.score
    assert float(shown.double().mean()) == pytest.approx(chosen.shown)
    assert float(rows.y[shown].double().mean()) == pytest.approx(chosen.ctr)


def test_live_devices_on_other_days_do_what_was_predicted(tmp_path: Path) -> None:
    histogram = survey(linear, FLEET, np.arange(8000))
    chosen = choose_threshold(histogram, keep_shown=0.5)
    live = {
        f"day {day}": go_live(
            linear,
            chosen.score,
            FLEET.on(day).rows(np.arange(20_000, 24_000)),
            FLEET.on(day).rows(np.arange(30_000, 34_000)),
        )
        for day in (1, 2, 3)
    }
    assert chosen.uplift > 0.2
    for found in live.values():
        assert found.shown == pytest.approx(chosen.shown, abs=0.02)
        assert abs(found.ctr - chosen.ctr) < 4 * found.ctr_error + 0.005
        assert abs(found.uplift - chosen.uplift) < 4 * found.uplift_error + 0.02
    console = Console(width=120, record=True)
    console.print(compared(chosen, live))
    said = console.export_text()
    assert all(word in said for word in ("predicted", "day 3", "uplift", "±"))
    assert picture(histogram, chosen, live, tmp_path / "live.png").read_bytes()[:4] == b"\x89PNG"


def test_what_drift_takes_from_a_threshold_shows_live() -> None:
    fleet = Keyboard(100_000, seed=8, drift=1.5)
    then = Truth.on(0, 1.5)

    def trained(x: torch.Tensor) -> torch.Tensor:
        return (x @ then.weights - 2.0)[:, None]

    scores: Scores = trained
    chosen = choose_threshold(survey(scores, fleet, np.arange(5000)), keep_shown=0.5)
    treated, control = np.arange(20_000, 24_000), np.arange(30_000, 34_000)
    soon, late = (
        go_live(scores, chosen.score, fleet.on(day).rows(treated), fleet.on(day).rows(control)) for day in (1, 14)
    )
    assert late.uplift < soon.uplift - 2 * (soon.uplift_error + late.uplift_error)


def test_the_errors_are_those_of_repeated_trials() -> None:
    trials = [
        go_live(linear, 0.2, FLEET.on(day).rows(np.arange(d, d + 200)), FLEET.rows(np.arange(200)))
        for day, d in enumerate(range(1000, 41_000, 400))
    ]
    spread = np.std([trial.ctr for trial in trials])
    assert np.mean([trial.ctr_error for trial in trials]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (1.2, 0.0), (0.0, -0.1)])
def test_shares_that_say_nothing_are_refused(shares: tuple[float, float]) -> None:
    histogram = Histogram(np.ones(4, dtype=np.int64), np.ones(4, dtype=np.int64))
    with pytest.raises(BadInput, match="at least one share"):
        choose_threshold(histogram, *shares)
