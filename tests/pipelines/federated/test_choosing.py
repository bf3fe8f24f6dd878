"""What every strategy promises, whatever it prefers; and what each of them prefers."""

from __future__ import annotations

import warnings
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding import nearest_centroid
from models.errors import BadInput
from pipelines.federated.choosing import OUTSIDE, STRATEGIES, Pool
from pipelines.federated.jobs import Counts
from pipelines.settings import LabelSettings

CLUSTERS, CLASSES = 4, 3


def pool_of(rows: int, seed: int, model: bool = True) -> Pool:
    """Rows around four centres, a cluster each but for chance."""
    rng = np.random.default_rng(seed)
    centroids = np.eye(CLUSTERS, 6)
    features = (centroids[rng.integers(CLUSTERS, size=rows)] + rng.normal(0, 0.2, (rows, 6))).astype(np.float32)
    nearest, distance = nearest_centroid(features, centroids)
    probabilities = rng.dirichlet(np.ones(CLASSES), size=rows) if model else None
    return Pool(features, nearest, distance, distance / 0.3, probabilities, CLASSES, seed)


def quota_of(name: str, pool: Pool, share: float) -> Counts:
    """So many of each cluster, or of the site: what a server may ask of this pool."""
    if not STRATEGIES[name].clustered:
        return np.array([int(share * len(pool.features))])
    return (share * np.bincount(pool.nearest, minlength=CLUSTERS)).astype(np.int64)


@pytest.mark.parametrize("name", STRATEGIES)
@given(rows=st.integers(0, 40), share=st.sampled_from([0.0, 0.2, 0.7, 1.0]), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_every_strategy_keeps_the_quota_exactly_and_takes_no_row_twice(
    name: str, rows: int, share: float, seed: int
) -> None:
    pool = pool_of(rows, seed)
    quota = quota_of(name, pool, share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = STRATEGIES[name].choose(pool, quota)
        again = STRATEGIES[name].choose(pool, quota)
    assert len(chosen) == quota.sum()
    assert len(set(chosen.tolist())) == len(chosen)
    assert all(0 <= row < rows for row in chosen)
    assert np.array_equal(chosen, again), "the same seed, the same rows"
    if STRATEGIES[name].clustered:
        assert np.array_equal(np.bincount(pool.nearest[chosen], minlength=CLUSTERS), quota)


def test_the_settings_name_every_strategy_and_no_other() -> None:
    assert set(get_args(LabelSettings.model_fields["strategy"].annotation)) == set(STRATEGIES)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.needs_model])
def test_a_strategy_that_needs_a_model_says_so_in_a_sentence(name: str) -> None:
    assert STRATEGIES[name].choose(pool_of(9, 0), np.array([3])).shape == (3,)
    with pytest.raises(BadInput, match="need a model"):
        STRATEGIES[name].choose(pool_of(9, 0, model=False), np.array([3]))


def test_central_takes_the_rows_nearest_to_their_centroid() -> None:
    pool = pool_of(40, 1)
    chosen = STRATEGIES["central"].choose(pool, np.full(CLUSTERS, 2))
    for row in set(range(40)) - set(chosen.tolist()):
        mates = [other for other in chosen if pool.nearest[other] == pool.nearest[row]]
        assert all(pool.distance[other] <= pool.distance[row] for other in mates)


def test_near_takes_rows_of_the_nearer_half() -> None:
    pool = pool_of(40, 1)
    for row in STRATEGIES["near"].choose(pool, np.full(CLUSTERS, 2)):
        own = np.sort(pool.distance[pool.nearest == pool.nearest[row]])
        assert pool.distance[row] <= own[-(-len(own) // 2) - 1]


def test_typical_takes_a_row_where_they_are_dense_and_not_one_that_stands_alone() -> None:
    rng = np.random.default_rng(0)
    crowd, alone = rng.normal(0, 0.01, (20, 6)) + 1, rng.normal(0, 5, (5, 6))
    features = np.concatenate([alone, crowd]).astype(np.float32)
    nothing = np.zeros(25)
    pool = Pool(features, np.zeros(25, dtype=np.int64), nothing, nothing, None, CLASSES, 0)
    assert STRATEGIES["typical"].choose(pool, np.array([1]))[0] >= 5


def test_margin_takes_the_rows_between_two_classes() -> None:
    shares = np.array([[0.9, 0.1, 0.0], [0.5, 0.49, 0.01], [0.6, 0.3, 0.1], [0.34, 0.33, 0.33]])
    pool = Pool(np.zeros((4, 2), np.float32), np.zeros(4, np.int64), np.zeros(4), np.zeros(4), shares, 3, 0)
    assert set(STRATEGIES["margin"].choose(pool, np.array([2]))) == {1, 3}
    assert STRATEGIES["uncertainty"].choose(pool, np.array([1]))[0] == 3


def test_drifted_takes_what_lies_outside_the_known_clusters_first() -> None:
    pool = pool_of(60, 2)
    outside = np.flatnonzero(pool.strangeness > OUTSIDE)
    assert 3 < len(outside) < 57
    few = STRATEGIES["drifted"].choose(pool, np.array([3]))
    assert set(few) <= set(outside)
    many = STRATEGIES["drifted"].choose(pool, np.array([len(outside) + 3]))
    assert set(outside) <= set(many)
