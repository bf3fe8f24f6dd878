"""Labels that come later are evidence that the model errs, valid however often one looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_rows import prediction
from reported_windows import ROWS, report

from monitoring import alarm
from monitoring.deciding import decide
from monitoring.error_evidence import ERRORS, log_since_errors, with_errors
from monitoring.estimate import NOTHING, Known
from monitoring.policy import AlarmPolicy
from monitoring.traffic import Label, TrafficLog

MEASURED = Known(np.array([0.9]), np.array([200.0]), np.array([190.0]))  # wrong on 5% of 200 rows


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TrafficLog]:
    made = TrafficLog.open(f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "images")
    yield made
    made.close()


@given(tolerated=st.floats(0.02, 0.5), share=st.floats(0.0, 1.0), seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_no_bet_gains_on_average_while_the_model_errs_no_more_than_tolerated(
    tolerated: float, share: float, seed: int
) -> None:
    wrong = np.random.default_rng(seed).binomial(60, tolerated * share, size=(400, 4)).astype(float)
    gains = np.array([np.exp(log_since_errors(own, 60.0 - own, tolerated, 0.0, 1)) for own in wrong])
    # The mean of a heavy tail is estimated badly, so the largest values are cut, which only lowers it.
    assert (np.minimum(gains, 50.0).mean(axis=0) < 1.6).all()


@given(wrong=st.lists(st.integers(0, 60), min_size=4, max_size=8), persistence=st.integers(1, 3))
@settings(max_examples=40)
def test_a_change_needs_windows_before_it_and_no_one_window_makes_it(wrong: list[int], persistence: int) -> None:
    many = np.array(wrong, dtype=float)
    found = log_since_errors(many, 60.0 - many, 0.1, 0.03, persistence)
    starts = len(wrong) - persistence + 1
    assert np.isneginf(found[0])
    assert np.isneginf(found[starts:]).all()
    always = log_since_errors(np.full(8, 30.0), np.full(8, 30.0), 0.1, 0.03, persistence)
    assert (always < 0.0).all(), "it has erred as often from its first day"
    once = np.zeros(len(wrong))
    once[-1] = 60.0
    if persistence > 1:
        assert (log_since_errors(once, 60.0 - once, 0.1, 0.03, persistence)[:starts] < 1.0).all()


def _window(log: TrafficLog, number: int, wrong: int, labelled: int = 50) -> None:
    """A window without any drift, of which clinics say that so many of so many answers were wrong."""
    rows = [prediction(number * ROWS + place) for place in range(ROWS)]
    log.record(rows)
    _label(log, rows[:labelled], wrong)
    report(log.engine, {})


def _label(log: TrafficLog, rows: list, wrong: int) -> None:  # type: ignore[type-arg]
    said = [(row, (row.prediction + (place < wrong)) % 10) for place, row in enumerate(rows)]
    log.label_all([Label(row.prediction_id, label, "clinic", row.at + 1.0) for row, label in said])


def test_a_model_that_labels_call_wrong_is_retrained_though_its_inputs_stand_still(log: TrafficLog) -> None:
    for number in range(6):
        _window(log, number, wrong=2)
        assert decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0) is None
    _window(log, 6, wrong=25)
    assert decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0) is None  # one window alone
    _window(log, 7, wrong=25)
    decision = decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0)
    assert decision is not None
    assert (decision.answer, decision.evidence["probable_cause"]) == ("retrain", ERRORS)
    assert decision.evidence["windows"] == [7, 8]
    assert "the share of wrong answers rose from 0.05 to 0.50" in decision.sentence
    assert "by the labels that came since, the model errs" in decision.sentence
    assert alarm.claim(log.engine, decision.decision, "run")


def test_without_a_measured_version_or_labels_there_is_no_such_evidence(log: TrafficLog) -> None:
    for number in range(4):
        _window(log, number, wrong=50 if number > 1 else 2)
    assert decide(log.engine, AlarmPolicy(), measured=NOTHING, now=0.0) is None
    assert decide(log.engine, AlarmPolicy(error_margin=0.9), measured=MEASURED, now=0.0) is None
    assert decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0) is not None


def test_labels_that_come_long_after_their_window_count_for_it(log: TrafficLog) -> None:
    _window(log, 0, wrong=2)
    for number in range(1, 4):
        _window(log, number, wrong=0, labelled=0)
    assert decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0) is None
    rows = list(log.between(ROWS + 1, 4 * ROWS + 1).itertuples())
    log.label_all([Label(row.prediction_id, (row.prediction + 1) % 10, "clinic", row.at + 9e5) for row in rows[:150]])
    windows = [dict(row) for row in _windows(log.engine)]
    told = with_errors(log.engine, windows, MEASURED, 0.03)
    labelled = [each["evidence"]["scopes"]["overall"]["columns"].get(ERRORS, {}).get("labelled") for each in told]
    assert labelled == [[2, 48], [100, 0], [50, 0], None]
    assert decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0) is not None


def test_a_site_where_the_model_errs_is_found_though_all_rows_together_are_as_before(log: TrafficLog) -> None:
    def window(number: int, wrong: int) -> None:
        rows = [prediction(number * ROWS + place, site="site-2" if place < 30 else "site-1") for place in range(ROWS)]
        log.record(rows)
        _label(log, rows, wrong)
        report(log.engine, {}, mix={"site-1": 70, "site-2": 30})

    for number in range(8):
        window(number, wrong=1)
        assert decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0) is None
    decision = None
    for number in range(8, 16):
        window(number, wrong=10)  # a third of the site's answers, a tenth of all
        decision = decision or decide(log.engine, AlarmPolicy(), measured=MEASURED, now=0.0)
    assert decision is not None
    assert decision.evidence["scopes"] == decision.evidence["sites"] == ["site-2"]
    assert (decision.answer, decision.evidence["probable_cause"]) == ("retrain", ERRORS)
    assert "at site-2 in windows 9-" in decision.sentence


def _windows(engine: sa.Engine) -> list[sa.RowMapping]:
    from monitoring.database import WINDOWS

    with engine.connect() as connection:
        return list(connection.execute(sa.select(WINDOWS)).mappings())
