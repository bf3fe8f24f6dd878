"""The data summary: federated clusters of everybody's rows, made of sums and counts alone.

Each site clusters its own rows; the centroids, weighted by their counts, are clustered again into the global ones;
then every federated Lloyd iteration assigns the rows at the sites and averages their sums, which is exactly
k-means on the pooled rows (Lloyd, 1982) from that start, but for rows that are alone in a cluster at their site: a
site tells no sum of one row.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from models.errors import BadInput
from pipelines.federated.engines.engine import Engine
from pipelines.federated.files import digest, write_atomically
from pipelines.federated.jobs import (
    MINIMUM_ROWS,
    Answer,
    AssignAnswer,
    AssignJob,
    ClusterAnswer,
    ClusterJob,
    Counts,
    Failure,
    Floats,
    Job,
    Parameters,
)
from pipelines.federated.site import DISTANCE_RANGE

Snapshots = Mapping[str, tuple[str, ...]]
"""Site → the ids of its snapshots."""

A = TypeVar("A", bound=Answer)


@dataclass(frozen=True)
class DataSummary:
    """Global clusters. centroids: [k, d]; by site: rows [k], and histograms [k, bins] of the distance to them."""

    centroids: Floats
    counts: dict[str, Counts]
    distances: dict[str, Counts]

    @property
    def id(self) -> str:
        return digest(self.centroids.round(9).tolist(), {site: c.tolist() for site, c in sorted(self.counts.items())})

    def radius(self, share: float) -> Floats:
        """[k]: the distance within which that share of a cluster's rows lies (upper edge of the bin)."""
        histogram = np.sum(list(self.distances.values()), axis=0)
        cumulative = np.cumsum(histogram, axis=1)
        needed = share * cumulative[:, -1:]
        bins = histogram.shape[1]
        return np.asarray((np.argmax(cumulative >= needed, axis=1) + 1) * (DISTANCE_RANGE / bins))

    def within(self, radius: Floats) -> dict[str, Counts]:
        """Site → [k]: its rows within a radius that `radius` gave."""
        found = {}
        for site, histogram in self.distances.items():
            bins = np.rint(radius / DISTANCE_RANGE * histogram.shape[1]).astype(np.int64)
            cumulative = np.pad(np.cumsum(histogram, axis=1), ((0, 0), (1, 0)))
            found[site] = cumulative[np.arange(len(bins)), bins]
        return found

    def save(self, path: Path) -> Path:
        """Write the centroids as .npz, for the registry and the monitors."""
        buffer = io.BytesIO()
        np.savez(buffer, centroids=self.centroids)
        write_atomically(path, buffer.getvalue())
        return path


def ask_all(engine: Engine, jobs: Mapping[str, Job], kind: type[A]) -> dict[str, A]:
    """Every site's answer of one kind.

    Raises:
        BadInput: a site failed; these steps need every site, unlike a training round.
    """
    answers = {}
    for site, answer in engine.ask(jobs):
        if isinstance(answer, Failure):
            raise BadInput(f"a site could not answer {type(jobs[site]).__name__}: {answer.reason}")
        assert isinstance(answer, kind)
        answers[site] = answer
    return answers


def summarize(
    engine: Engine,
    snapshots: Snapshots,
    clusters: int,
    lloyd_rounds: int,
    seed: int,
    encoder: Parameters | None = None,
) -> DataSummary:
    """Cluster everybody's training rows into (at most) `clusters` global clusters."""
    from sklearn.cluster import KMeans

    sites = sorted(site for site, own in snapshots.items() if own)
    local = ask_all(engine, {s: ClusterJob(snapshots[s], clusters, seed, encoder) for s in sites}, ClusterAnswer)
    points = np.concatenate([local[site].centroids for site in sites])
    weights = np.concatenate([local[site].counts for site in sites]).astype(np.float64)
    points, weights = points[weights > 0], weights[weights > 0]
    if not len(points):
        raise BadInput(f"no site has the {MINIMUM_ROWS} rows that clusters need; ingest more rows first")
    wanted = min(clusters, len(points))
    merged = KMeans(wanted, n_init=4, random_state=seed).fit(points, sample_weight=weights)
    centroids = np.asarray(merged.cluster_centers_, dtype=np.float64)
    for _ in range(lloyd_rounds):
        answers = _assign(engine, snapshots, sites, centroids, encoder)
        counts = np.sum([np.where(a.counts >= MINIMUM_ROWS, a.counts, 0) for a in answers.values()], axis=0)
        sums = np.sum([a.sums for a in answers.values()], axis=0)
        kept = counts > 0
        centroids = np.where(kept[:, None], sums / np.maximum(counts, 1)[:, None], centroids)
    answers = _assign(engine, snapshots, sites, centroids, encoder)
    return DataSummary(
        centroids,
        {site: answer.counts for site, answer in answers.items()},
        {site: answer.distances for site, answer in answers.items()},
    )


def _assign(
    engine: Engine, snapshots: Snapshots, sites: Sequence[str], centroids: Floats, encoder: Parameters | None
) -> dict[str, AssignAnswer]:
    return ask_all(
        engine, {site: AssignJob(snapshots[site], centroids, encoder=encoder) for site in sites}, AssignAnswer
    )
