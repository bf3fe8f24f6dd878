"""A model that doubts what is dark is no model that doubts what looks the same."""

from __future__ import annotations

import pytest

from monitoring.probable_cause import Facts, probable_cause


def facts(**columns: tuple[float, float]) -> Facts:
    """Columns by name: their logarithm of evidence, and how many times their threshold they are off."""
    told = {
        name: {"log_evidence": evidence, "ratio": ratio, "what": name, "was": 0.4, "now": 0.2, "spread": 0.5}
        for name, (evidence, ratio) in columns.items()
    }
    return Facts(told, everywhere=False, newest=[told])


@pytest.mark.parametrize(
    ("columns", "answer"),
    [
        # What digits showed when the light went out at one site of five.
        (facts(contrast=(60.0, 11.5), brightness=(50.0, 7.0), confidence=(70.0, 4.0)), "retrain"),
        (facts(contrast=(60.0, 11.5), confidence=(20.0, 2.0)), "retrain"),
        (facts(prediction=(60.0, 5.0), brightness=(20.0, 2.0)), "labels"),
        (facts(confidence=(30.0, 3.0)), "labels"),
    ],
)
def test_labels_are_asked_for_where_inputs_moved_less_and_not_as_far(columns: Facts, answer: str) -> None:
    assert probable_cause(columns)[0].answer == answer
