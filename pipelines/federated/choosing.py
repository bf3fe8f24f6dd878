"""Which of a site's rows are worth a label: one function a strategy, all within a quota.

Every function gets the site's pool and a quota, and answers with the positions of exactly so many rows, none twice.
What scikit-activeml has is called, on the rows of this site alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput
from pipelines.federated.jobs import Counts

Positions = NDArray[np.int64]

COVERAGE_ROWS = 4_000
"""ProbCover keeps all pairs of rows: beyond this many it looks at a random so many of them."""
OUTSIDE = 1.5
"""Radii beyond which a row is outside: about half of a cluster's own rows lie beyond one, the root mean square."""


@dataclass(frozen=True)
class Pool:
    """A site's rows. features: [n, p]; nearest, distance: [n], its cluster and how far; classes: of the task.

    strangeness: [n], the distance to the nearest known cluster, in radii of it.
    probabilities: [n, classes] by a model, where there is one. seed: of everything that is drawn.
    """

    features: NDArray[np.float32]
    nearest: Counts
    distance: NDArray[np.float64]
    strangeness: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None
    classes: int
    seed: int


Choose = Callable[[Pool, Counts], Positions]


def by_cluster(pick: Callable[[Pool, Positions, int, np.random.Generator], Positions]) -> Choose:
    """A strategy out of a pick within one cluster: (pool, the cluster's rows, how many, generator)."""

    def choose(pool: Pool, quota: Counts) -> Positions:
        rng = np.random.default_rng(pool.seed)
        picked = [np.zeros(0, dtype=np.int64)]
        for cluster in np.flatnonzero(quota):
            members = np.flatnonzero(pool.nearest == cluster)
            picked.append(pick(pool, members, int(quota[cluster]), rng))
        return np.concatenate(picked)

    return choose


def _central(pool: Pool, members: Positions, count: int, rng: np.random.Generator) -> Positions:
    return members[np.argsort(pool.distance[members], kind="stable")[:count]]


def _near(pool: Pool, members: Positions, count: int, rng: np.random.Generator) -> Positions:
    nearer = _central(pool, members, max(count, -(-len(members) // 2)), rng)
    return rng.choice(nearer, size=count, replace=False)


def _typical(pool: Pool, members: Positions, count: int, rng: np.random.Generator) -> Positions:
    from skactiveml.pool import TypiClust

    if count == len(members):
        return members
    query = TypiClust(random_state=int(rng.integers(2**31)))
    found = query.query(pool.features[members], np.full(len(members), np.nan), batch_size=count)
    return np.asarray(members[found], dtype=np.int64)


def coverage(pool: Pool, quota: Counts) -> Positions:
    """The rows whose balls cover most others (ProbCover; Yehuda et al., NeurIPS 2022)."""
    from skactiveml.pool import ProbCover

    count, rng = int(quota.sum()), np.random.default_rng(pool.seed)
    looked_at = rng.permutation(len(pool.features))[: max(COVERAGE_ROWS, count)]
    if count in (0, len(looked_at)):
        return looked_at[:count]
    # It clusters into as many clusters as classes, and these want as many rows.
    query = ProbCover(n_classes=max(2, min(pool.classes, len(looked_at))), random_state=pool.seed % 2**31)
    found = query.query(pool.features[looked_at], np.full(len(looked_at), np.nan), batch_size=count)
    return np.asarray(looked_at[found], dtype=np.int64)


def by_doubt(method: str) -> Choose:
    """The rows that a model doubts most, by a method of scikit-activeml's `uncertainty_scores`."""

    def choose(pool: Pool, quota: Counts) -> Positions:
        from skactiveml.pool import uncertainty_scores

        if pool.probabilities is None:
            raise BadInput(f"labels by {method} need a model, and none came with the job; choose another strategy")
        doubt = uncertainty_scores(pool.probabilities, method=method) if len(pool.features) else np.zeros(0)
        return np.argsort(-doubt, kind="stable")[: int(quota.sum())]

    return choose


def drifted(pool: Pool, quota: Counts) -> Positions:
    """Rows outside the known clusters first, drawn at random; where there are too few, others at random."""
    shuffled = np.random.default_rng(pool.seed).permutation(len(pool.features))
    return shuffled[np.argsort(pool.strangeness[shuffled] <= OUTSIDE, kind="stable")[: int(quota.sum())]]


def at_random(pool: Pool, quota: Counts) -> Positions:
    """The baseline that every other strategy has to beat."""
    return np.random.default_rng(pool.seed).permutation(len(pool.features))[: int(quota.sum())]


@dataclass(frozen=True)
class Strategy:
    """clustered: the quota says how many of each cluster, else only how many of the site."""

    choose: Choose
    clustered: bool = False
    needs_model: bool = False


STRATEGIES: Mapping[str, Strategy] = {
    # The rows nearest to a centroid, of whichever site has them.
    "central": Strategy(by_cluster(_central), clustered=True),
    # At random among a cluster's nearer half.
    "near": Strategy(by_cluster(_near), clustered=True),
    # Where the site's rows of a cluster are densest (TypiClust; Hacohen et al., ICML 2022).
    "typical": Strategy(by_cluster(_typical), clustered=True),
    "coverage": Strategy(coverage),
    "uncertainty": Strategy(by_doubt("least_confident"), needs_model=True),
    "margin": Strategy(by_doubt("margin_sampling"), needs_model=True),
    "drifted": Strategy(drifted),
    "random": Strategy(at_random),
}
