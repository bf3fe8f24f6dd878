"""The data summary: federated clusters of everybody's rows, made of sums and counts alone.

One-shot: each site clusters its own rows, and the centroids, weighted by their counts, are clustered again into the
global ones (k-FED; Dennis et al., ICML 2021). Iterative: then every federated Lloyd iteration assigns the rows at the
sites and averages their means, which is k-means on the pooled rows (Lloyd, 1982) from that start, but for rows that
are alone in a cluster at their site: a site tells no mean of one row.

So that hundreds of centroids of wide rows can travel, they do so in the few directions in which the sites' first
centroids differ most, which nobody needs a row to know. And what travels between a site and the server is bounded:
where many clusters are asked for there are fewer Lloyd iterations, and of very many fewer clusters.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
    Halves,
    Job,
    Parameters,
    ProjectAnswer,
    ProjectJob,
    Singles,
)

Snapshots = Mapping[str, tuple[str, ...]]
"""Site → the ids of its snapshots."""

A = TypeVar("A", bound=Answer)


DIRECTIONS = 32
"""Numbers that a row is projected to where it has more than twice as many."""
SITE_BYTES, FIRST_BYTES, FRAMES_BYTES = 200_000, 60_000, 8_000
"""Both ways, what a summary may cost a site but for an encoder's weights: in all, in its own centroids, and in whatever
is around the numbers. Rows of more than 1,500 numbers cost more, as their basis alone does."""


@dataclass(frozen=True)
class DataSummary:
    """Global clusters. space: the sites' name of the rows in it; basis: [d, p], None where nothing was projected.

    centroids: [k, p]; by site: rows [k], mean distance of the nearest MINIMUM_ROWS rows [k], histograms of the distance
    [k, bins]. radius: [k], root of the rows' mean squared distance. starts: [n, d], start_rows: [n], the sites' first
    centroids before they were projected, and their rows.
    """

    space: str
    basis: Halves | None
    centroids: Halves
    counts: dict[str, Counts]
    closest: dict[str, Singles]
    distances: dict[str, NDArray[np.int32]]
    radius: Singles
    starts: Singles
    start_rows: Floats

    @property
    def projected(self) -> Singles:
        """The sites' first centroids [n, p] in the space of the global ones."""
        return self.starts if self.basis is None else self.starts @ self.basis.astype(np.float32)

    @property
    def id(self) -> str:
        return digest(
            self.space, self.centroids.tolist(), {site: c.tolist() for site, c in sorted(self.counts.items())}
        )

    def save(self, path: Path) -> Path:
        """Write the centroids as .npz, for the registry and the monitors."""
        buffer = io.BytesIO()
        np.savez(buffer, centroids=self.centroids.astype(np.float64))
        write_atomically(path, buffer.getvalue())
        return path


def ask_all(engine: Engine, jobs: Mapping[str, Job], kind: type[A]) -> dict[str, A]:
    """Every site's answer of one kind.

    Raises:
        BadInput: a site failed; these steps need every site, unlike a training round.
    """
    answers: dict[str, A] = {}
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
    directions: int = DIRECTIONS,
    basis: Halves | None = None,
    bins: int = 0,
) -> DataSummary:
    """Cluster everybody's training rows into (at most) `clusters` global clusters.

    lloyd_rounds: 0 is one-shot; fewer are made where SITE_BYTES are spent before. directions: 0 projects nothing.
    basis: of another summary, to share its space. bins: of the histograms of distances.

    Raises:
        BadInput: a site failed, or no site has rows enough.
    """
    from sklearn.cluster import KMeans

    sites = sorted(site for site, own in snapshots.items() if own)
    whole = digest(
        "space", {s: snapshots[s] for s in sites}, seed, encoder and {n: v.tolist() for n, v in encoder.items()}
    )
    local = clusters_of_a_site(clusters, len(sites))
    jobs = {s: ClusterJob(whole, snapshots[s], local, seed, FIRST_BYTES, encoder) for s in sites}
    starts, start_rows, sent = _first(engine, jobs)
    left, came = SITE_BYTES - FRAMES_BYTES - sent.nbytes, len(sent)
    space, points, weights = whole, starts, start_rows
    if basis is None and 0 < 2 * directions < points.shape[1]:
        basis = principal_directions(points, weights, directions)
    if basis is not None:
        space = digest(whole, basis.tolist())
        ask_all(engine, {site: ProjectJob(whole, space, basis) for site in sites}, ProjectAnswer)
        left, points = left - basis.nbytes, points @ basis.astype(np.float32)
        if came < local:  # too few of the wide ones could be sent to start so many clusters from
            narrow = {s: ClusterJob(space, None, local, seed, FIRST_BYTES // 2) for s in sites}
            points, weights, sent = _first(engine, narrow)
            left -= sent.nbytes
    # Bytes of a cluster: there 2 a number, back its counts and distances, or in a Lloyd iteration its count and mean.
    looked_at, moved = 2 * points.shape[1] + 16 + 4 * bins, 4 * points.shape[1] + 8
    wanted = max(1, min(clusters, len(points), left // looked_at))
    merged = KMeans(wanted, n_init=4, random_state=seed).fit(points, sample_weight=weights)
    centroids = merged.cluster_centers_.astype(np.float16)
    for _ in range(min(lloyd_rounds, max(0, left - wanted * looked_at) // (wanted * moved))):
        centroids = _moved(centroids, _assign(engine, space, sites, centroids, moving=True))
    answers = _assign(engine, space, sites, centroids, bins=bins)
    told = np.sum([a.counts * (a.squares > 0) for a in answers.values()], axis=0)
    squares = np.sum([a.counts * a.squares for a in answers.values()], axis=0)
    return DataSummary(
        space,
        basis,
        centroids,
        {site: answer.counts for site, answer in answers.items()},
        {site: answer.closest for site, answer in answers.items()},
        {site: answer.distances for site, answer in answers.items()},
        np.sqrt(squares / np.maximum(told, 1)).astype(np.float32),
        starts,
        start_rows,
    )


def _first(engine: Engine, jobs: Mapping[str, ClusterJob]) -> tuple[Singles, Floats, Halves]:
    """All sites' own centroids [n, d] and their rows [n], and what one site sent.

    Raises:
        BadInput: a site failed, or no site has rows enough.
    """
    answers = ask_all(engine, jobs, ClusterAnswer).values()
    points = np.concatenate([each.centroids for each in answers]).astype(np.float32)
    weights = np.concatenate([each.counts for each in answers]).astype(np.float64)
    if not weights.any():
        raise BadInput(f"no site has the {MINIMUM_ROWS} rows that clusters need; ingest more rows first")
    return points[weights > 0], weights[weights > 0], next(iter(answers)).centroids


def clusters_of_a_site(clusters: int, sites: int) -> int:
    """How many centroids a site sends first: three times its share, since the sites' rows overlap, and never few."""
    return min(clusters, max(8, -(-3 * clusters // sites)))


def principal_directions(points: Singles, weights: NDArray[np.float64], directions: int) -> Halves:
    """[d, p]: an orthonormal basis of the directions in which weighted points [n, d] vary most."""
    centred = points - np.average(points, axis=0, weights=weights)
    _, _, basis = np.linalg.svd(centred * np.sqrt(weights)[:, None], full_matrices=False)
    return np.asarray(basis[:directions].T, dtype=np.float16)


def _moved(centroids: Halves, answers: Mapping[str, AssignAnswer]) -> Halves:
    """Lloyd's step: each centroid to the mean of its rows at all sites that told one; others stay."""
    counts = np.stack([np.where(a.counts >= MINIMUM_ROWS, a.counts, 0) for a in answers.values()])
    sums = np.sum(
        [n[:, None] * a.means.astype(np.float64) for n, a in zip(counts, answers.values(), strict=True)], axis=0
    )
    total = counts.sum(axis=0)[:, None]
    return np.asarray(np.where(total > 0, sums / np.maximum(total, 1), centroids), dtype=np.float16)


def _assign(
    engine: Engine, space: str, sites: Sequence[str], centroids: Halves, moving: bool = False, bins: int = 0
) -> dict[str, AssignAnswer]:
    return ask_all(engine, {site: AssignJob(space, centroids, moving, bins) for site in sites}, AssignAnswer)
