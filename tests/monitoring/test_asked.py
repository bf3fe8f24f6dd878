from __future__ import annotations

import uuid

import numpy as np
import pytest
from fresh_logs import fresh_log

from monitoring import alarm
from monitoring.asked import settle
from monitoring.policy import AlarmPolicy
from monitoring.traffic import Label, Prediction, TrafficLog

ASKED = {"answer": "labels", "sentence": "the share of predictions of 3 rose", "from_seq": 201, "to_seq": 401,
         "model_version": 1, "sites": [], "windows": [3, 4]}  # fmt: skip


def send(log: TrafficLog, rows: int, right: float, labelled: int) -> None:
    """Rows of which the share `right` of the labelled ones is right."""
    ids = [str(uuid.uuid4()) for _ in range(rows)]
    log.record([Prediction(key, None, "site-1", 0.0, 1, b"", "0" * 32, 3, 0.95, [], [0.0] * 5) for key in ids])
    labels = np.where(np.arange(labelled) < round(right * labelled), 3, 4)
    log.label_all([Label(key, int(label), "clinic", 0.0) for key, label in zip(ids, labels, strict=False)])


@pytest.mark.parametrize(
    ("right", "labelled", "outcome", "answers"),
    [
        (0.5, 100, "the model got worse: of 100 labels 50% agree with the model, 95% before", ["labels", "retrain"]),
        (0.96, 150, "the model holds: of 150 labels 96% agree with the model, 95% before", ["labels"]),
        (0.5, 20, None, ["labels"]),  # too few labels
        (0.92, 60, None, ["labels"]),  # they say nothing clear yet
    ],
)
@pytest.mark.parametrize("known_before", [True, False])
def test_labels_close_a_request_for_them_and_only_a_worse_model_is_retrained(
    right: float, labelled: int, outcome: str | None, answers: list[str], known_before: bool
) -> None:
    with fresh_log() as log:
        send(log, 200, 0.95, 100 if known_before else 0)
        alarm.record(log.engine, "label shift", ASKED, 0.0, AlarmPolicy())
        send(log, 200, right, labelled)
        said = settle(log, AlarmPolicy(), now=1.0)
        found = alarm.decisions(log.engine)
    assert [one.answer for one in found] == answers
    assert found[0].outcome == outcome
    assert said == ([] if outcome is None else [f"decision 1: {outcome}"])
    if len(found) == 2:
        assert (found[1].state, found[1].evidence["from_seq"]) == ("waiting", 201)


def test_a_request_stays_open_while_a_retraining_is_barred() -> None:
    with fresh_log() as log:
        send(log, 200, 0.95, 100)
        alarm.record(log.engine, "label shift", ASKED, 0.0, AlarmPolicy())
        alarm.record(log.engine, "drift", {}, 0.0, AlarmPolicy())
        send(log, 200, 0.5, 100)
        assert settle(log, AlarmPolicy(), now=1.0) == []
        assert alarm.decisions(log.engine)[0].state == "asked"
