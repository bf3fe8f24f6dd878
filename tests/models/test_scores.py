"""Quality figures are those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from models.scores import binary_quality, class_quality, rank_auc


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auc_is_scikit_learns_ties_included(rows: list[tuple[int, bool]]) -> None:
    scores, positive = (np.array(part) for part in zip(*rows, strict=True))
    assume(positive.any() and not positive.all())
    assert rank_auc(scores.astype(float), positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_auc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(rank_auc(np.arange(4.0), np.ones(4, dtype=bool)))


@given(seed=st.integers(0, 2**32), classes=st.integers(3, 5))
def test_auc_of_many_classes_is_the_mean_of_one_against_the_rest(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, y = torch.from_numpy(rng.normal(size=(40, classes))), np.arange(40) % classes
    chances = torch.softmax(outputs, dim=1).numpy()
    found = class_quality(outputs, torch.from_numpy(y))
    assert found["auc"] == pytest.approx(roc_auc_score(y, chances, multi_class="ovr"), abs=1e-12)


def test_log_odds_above_zero_say_yes() -> None:
    found = binary_quality(torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 0, 0, 1]))
    assert found["accuracy"] == 0.5
    assert found["auc"] == roc_auc_score([1, 0, 0, 1], [2.0, -1.0, 0.5, -3.0])
