from __future__ import annotations

import pandas as pd
import pytest

from monitoring.performance import accuracies


def rows(right: int, wrong: int, unlabelled: int = 0, site: str = "a", confidence: float = 0.9) -> pd.DataFrame:
    labels = pd.array([1] * right + [0] * wrong + [None] * unlabelled, dtype="Int64")
    count = right + wrong + unlabelled
    return pd.DataFrame({"site": site, "prediction": 1, "confidence": confidence, "label": labels}, index=range(count))


def test_no_labels_is_no_accuracy_rather_than_zero() -> None:
    assert accuracies(rows(0, 0, 50)) == []


def test_accuracy_counts_labelled_rows_only_overall_and_per_site() -> None:
    both = pd.concat([rows(90, 10, 100, "a"), rows(5, 5, 0, "b")], ignore_index=True)
    overall, a, b = accuracies(both)
    assert (overall.scope, overall.labelled, overall.value) == ("overall", 110, pytest.approx(95 / 110))
    assert (a.scope, a.value, b.scope, b.value) == ("a", 0.9, "b", 0.5)
    assert (round(a.low, 3), round(a.high, 3)) == (0.826, 0.945)


@pytest.mark.parametrize(("right", "wrong"), [(0, 1), (1, 0), (0, 200), (200, 0), (37, 3)])
def test_the_interval_holds_the_share_and_stays_within_zero_and_one(right: int, wrong: int) -> None:
    found = accuracies(rows(right, wrong))[0]
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low < found.high
