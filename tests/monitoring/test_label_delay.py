from __future__ import annotations

import math

import pytest
from fresh_logs import fresh_log
from test_silence import send

from monitoring.label_delay import label_delay
from monitoring.performance import labelled_answers


def test_delays_are_told_in_hours_with_the_share_that_has_come() -> None:
    with fresh_log() as log:
        send(log, "a", *(float(i) for i in range(20)))
        nothing = label_delay(log.engine, 1, 21)
        assert (nothing.rows, nothing.labelled, nothing.share) == (20, 0, 0.0)
        assert math.isnan(nothing.median_hours)
        rows = log.between(1, 21)
        for place, row in enumerate(rows.itertuples()):
            if place < 10:
                log.label(row.prediction_id, 0, "clinic", row.at + 3600.0 * (place + 1))
                log.label(row.prediction_id, 1, "second opinion", row.at + 1e6)  # its first label counts
        found = label_delay(log.engine, 1, 21)
        assert (found.labelled, found.share) == (10, 0.5)
        assert found.median_hours == pytest.approx(5.5)
        assert found.slow_hours == pytest.approx(9.1)
        assert label_delay(log.engine, 11, 21).labelled == 0
        assert label_delay(log.engine, 21, 30).share == 0.0


def test_a_label_from_before_its_row_by_a_clock_that_is_wrong_took_no_time() -> None:
    with fresh_log() as log:
        send(log, "a", 100.0)
        log.label(log.between(1, 2)["prediction_id"][0], 0, "clinic", 50.0)
        assert label_delay(log.engine, 1, 2).median_hours == 0.0


def test_the_last_label_of_a_row_says_whether_its_answer_was_right() -> None:
    with fresh_log() as log:
        send(log, "a", *(float(i) for i in range(4)))  # every answer is class 0
        ids = list(log.between(1, 5)["prediction_id"])
        log.label(ids[0], 0, "clinic", 10.0)
        log.label(ids[1], 1, "clinic", 10.0)
        log.label(ids[1], 0, "second opinion", 20.0)
        log.label(ids[2], 1, "clinic", 10.0)
        known = labelled_answers(log.engine, 1, 5, version=1)
        assert (known.total, known.right.sum()) == (3, 2)
        assert labelled_answers(log.engine, 1, 5, version=2).total == 0
