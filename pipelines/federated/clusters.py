"""A site's part in federated clustering: its own clusters, its rows in the common space, its part in Lloyd's step.

In go jobs, out come means and counts; the embedded rows stay in the site's store under the space's name. The other
half is `pipelines/summarize.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from models.draws import draw_seed
from models.embedding import nearest_centroid, unit_length
from models.images import to_tensor
from pipelines.federated import jobs
from pipelines.federated.jobs import MINIMUM_ROWS, Parameters

if TYPE_CHECKING:
    from pipelines.federated.site import Site

LOCAL_ITERATIONS = 30
"""Of a site's own k-means, whose centroids are only where the global ones start."""


def cluster(site: Site, job: jobs.ClusterJob) -> jobs.ClusterAnswer:
    from sklearn.cluster import KMeans

    if job.snapshots is None:
        _, features = site.store.space(job.space)
    else:
        rows, features = _embedded(site, job.snapshots, job.encoder)
        site.store.write_space(job.space, rows["row_id"].tolist(), features)
    most = max(1, min(job.clusters, job.size_bytes // (2 * features.shape[1])))
    centroids = np.zeros((most, features.shape[1]), dtype=np.float16)
    counts = np.zeros(most, dtype=np.int64)
    clusters = min(most, len(features) // MINIMUM_ROWS)
    if clusters:
        seed = draw_seed(job.seed, site.name) % 2**31
        fitted = KMeans(clusters, n_init=1, max_iter=LOCAL_ITERATIONS, random_state=seed).fit(features)
        large = np.bincount(fitted.labels_, minlength=clusters) >= MINIMUM_ROWS
        nearest, _ = nearest_centroid(features, fitted.cluster_centers_[large])
        sizes = np.bincount(nearest)
        for index, own in enumerate(np.flatnonzero(sizes >= MINIMUM_ROWS)):
            centroids[index], counts[index] = features[nearest == own].mean(axis=0), sizes[own]
    return jobs.ClusterAnswer(centroids, counts)


def project(site: Site, job: jobs.ProjectJob) -> jobs.ProjectAnswer:
    row_ids, features = site.store.space(job.space)
    site.store.write_space(job.onto, row_ids, features @ job.basis.astype(np.float32))
    return jobs.ProjectAnswer(len(row_ids))


def assign(site: Site, job: jobs.AssignJob) -> jobs.AssignAnswer:
    _, features = site.store.space(job.space)
    nearest, distance = nearest_centroid(features, job.centroids)
    clusters = len(job.centroids)
    counts = np.bincount(nearest, minlength=clusters).astype(np.int64)
    told = np.flatnonzero(counts >= MINIMUM_ROWS)
    nothing = np.zeros(0, dtype=np.float32)
    if job.moving:
        means = np.zeros(job.centroids.shape, dtype=np.float16)
        for index in told:
            means[index] = features[nearest == index].mean(axis=0)
        return jobs.AssignAnswer(counts, means, nothing, nothing, np.zeros((0, 0), dtype=np.int32))
    squares, closest = np.zeros(clusters, dtype=np.float32), np.full(clusters, np.inf, dtype=np.float32)
    for index in told:
        away = np.sort(distance[nearest == index])
        squares[index], closest[index] = np.mean(away**2), away[:MINIMUM_ROWS].mean()
    histogram = np.zeros((clusters, job.bins), dtype=np.int32)
    if job.bins:
        bins = np.minimum((distance / jobs.DISTANCE_RANGE * job.bins).astype(np.int64), job.bins - 1)
        np.add.at(histogram, (nearest, bins), 1)
    return jobs.AssignAnswer(counts, np.zeros((0, 0), dtype=np.float16), squares, closest, histogram)


def _embedded(
    site: Site, snapshots: tuple[str, ...], encoder: Parameters | None
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    rows, images = site.images(snapshots, "train")
    features = site.task.embed(images)
    if encoder is None or not len(images):
        return rows, features
    model = site.task.build_model().eval()
    model.load_state_dict(encoder)
    with torch.no_grad():
        parts = [site.task.features(model, to_tensor(images[i : i + 512])) for i in range(0, len(images), 512)]
    return rows, np.concatenate([features, unit_length(torch.cat(parts).flatten(1).numpy())], axis=1)
