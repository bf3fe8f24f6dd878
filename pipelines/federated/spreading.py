"""What a site's bought labels, and the clusters' labels of all sites, say about its other rows, and how well.

`beliefs` gives every row a distribution over classes. `held_out` gives the same for bought rows whose own label was
hidden, which says how good spreading is here, and lets confident learning (Northcutt et al., JAIR 2021; cleanlab) name
the bought labels that are probably wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.embedding import nearest_centroid
from pipelines.federated.jobs import Counts

Beliefs = NDArray[np.float64]
"""[n, classes]: a distribution a row, all zeros where nothing was said."""

NEIGHBOURS = 5
LISTENING = 0.8
"""LabelSpreading's alpha: how much a row listens to its neighbours rather than to what its cluster said."""
FOLDS = 4
SUSPECTED_FROM = 12
"""Bought labels that confident learning needs at a site, to know what mistakes are usual."""


@dataclass(frozen=True)
class Told:
    """What is known. features: [n, p]; label: [n], -1 where not bought.

    centroids, histogram, radius: [k, p], [k, classes], [k]: of the clusters, with the labels bought in each anywhere.
    """

    features: NDArray[np.float32]
    label: Counts
    centroids: NDArray[np.float32]
    histogram: Counts
    radius: NDArray[np.float32]


def agreed_labels(histogram: Counts) -> Counts:
    """[k]: the label that all annotated members of a cluster share, -1 where they differ or nobody was asked."""
    total = histogram.sum(axis=1)
    unanimous = (total > 0) & (histogram.max(axis=1) == total)
    return np.where(unanimous, histogram.argmax(axis=1), -1)


def beliefs(how: str, told: Told) -> Beliefs:
    return _by_graph(told) if how == "graph" else _by_cluster(told)


def _by_cluster(told: Told) -> Beliefs:
    """A cluster's label, for the rows within its radius, where its bought rows agree."""
    nearest, distance = nearest_centroid(told.features, told.centroids)
    label = agreed_labels(told.histogram)[nearest]
    label = np.where(distance <= told.radius[nearest], label, -1)
    return np.asarray(np.eye(told.histogram.shape[1])[label] * (label >= 0)[:, None])


def _by_graph(told: Told) -> Beliefs:
    """Label spreading (Zhou et al., NeurIPS 2003) over the site's rows and the centroids that have a label.

    Every row begins with the label of the nearest centroid that has one, so a label bought at one site speaks at
    every other, and then listens to its neighbours, which draws the borders where the rows are few.
    """
    from sklearn.semi_supervised import LabelSpreading

    found = np.zeros((len(told.features), told.histogram.shape[1]))
    said = agreed_labels(told.histogram)
    if not len(found) or not (said >= 0).any():
        return found
    centroids, said = told.centroids[said >= 0], said[said >= 0]
    nearest, _ = nearest_centroid(told.features, centroids)
    nodes = np.concatenate([told.features, centroids])
    label = np.concatenate([np.where(told.label >= 0, told.label, said[nearest]), said])
    graph = LabelSpreading(kernel="knn", n_neighbors=min(NEIGHBOURS, len(nodes) - 1), alpha=LISTENING, max_iter=100)
    graph.fit(nodes, label)
    found[:, graph.classes_] = np.nan_to_num(graph.label_distributions_[: len(found)])
    return found


def held_out(how: str, told: Told, seed: int) -> Beliefs:
    """[n, classes]: of each bought row, what is believed when its label, here and in its cluster, is not known."""
    found = np.zeros((len(told.label), told.histogram.shape[1]))
    bought = np.random.default_rng(seed).permutation(np.flatnonzero(told.label >= 0))
    nearest, _ = nearest_centroid(told.features, told.centroids)
    for fold in np.array_split(bought, min(FOLDS, len(bought))) if len(bought) else []:
        histogram, label = told.histogram.copy(), told.label.copy()
        np.subtract.at(histogram, (nearest[fold], label[fold]), 1)
        label[fold] = -1
        # A label that came in after the histogram was made is not in it.
        found[fold] = beliefs(how, replace(told, label=label, histogram=np.maximum(histogram, 0)))[fold]
    return found


def suspects(label: Counts, expected: Beliefs) -> Counts:
    """Positions of bought labels that are probably wrong, judged by what is expected without them."""
    from cleanlab.filter import find_label_issues

    judged = np.flatnonzero((label >= 0) & (expected.sum(axis=1) > 0))
    classes, own = np.unique(label[judged], return_inverse=True)
    if len(judged) < SUSPECTED_FROM or len(classes) < 2:
        return np.zeros(0, dtype=np.int64)
    share = expected[np.ix_(judged, classes)] + 1e-6
    issues = find_label_issues(own, share / share.sum(axis=1, keepdims=True), n_jobs=1, min_examples_per_class=0)
    return np.asarray(judged[np.asarray(issues, dtype=bool)], dtype=np.int64)
