"""Jobs and answers: what a site may be asked, and the only things it may send back.

This file is the privacy boundary. A row, an image, an embedding of one row or a row's label never appears in an
answer; every array's size depends on the model, the clusters or the bins that the job names, never on how
many rows the site holds. A test lists the answer types and fails when a new one appears.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.federated.rules import PLAIN, LocalRule
from pipelines.federated.stages import Stage
from pipelines.federated.work import LocalWork

Parameters = dict[str, torch.Tensor]
"""A model's weights or an update of them, by name, float32."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

MINIMUM_ROWS = 2
"""Rows that a sum of embeddings is made of at least: the mean of one row is that row, and with it its image."""


# -- jobs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainJob:
    round: int
    seed: int
    labellings: tuple[str, ...]
    snapshots: tuple[str, ...]
    parameters: Parameters
    work: LocalWork
    rule: LocalRule = PLAIN
    stages: tuple[Stage, ...] = ()
    fresh: tuple[str, ...] = ()  # snapshots whose exposure the older rows are to be trained under
    run: str = ""  # names what a site keeps between the rounds of one run
    abandoned: tuple[int, ...] = ()  # earlier rounds that had no effect: nor is to have what sites kept of them
    shared: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # what the rule's server half sends along


@dataclass(frozen=True)
class EvaluateJob:
    """Judge one or two models on the site's evaluation rows: the challenger first, the champion where there is one.

    slice_edges: quality column → inner quantile edges; replicates: paired bootstrap draws.
    """

    snapshots: tuple[str, ...]
    models: tuple[Parameters, ...]
    slice_edges: dict[str, tuple[float, ...]]
    replicates: int
    seed: int


@dataclass(frozen=True)
class DescribeJob:
    """Histograms of the quality columns over [0, 1]."""

    snapshots: tuple[str, ...]
    split: str
    bins: int = 200


@dataclass(frozen=True)
class ClusterJob:
    """k-means on the site's own rows: where the global clusters start from.

    encoder: weights of the task's model whose features join the task's embedding; the same in the jobs below.
    """

    snapshots: tuple[str, ...]
    clusters: int
    seed: int
    encoder: Parameters | None = None


@dataclass(frozen=True)
class AssignJob:
    """Assign the rows to the global centroids [k, d]: one federated Lloyd iteration."""

    snapshots: tuple[str, ...]
    centroids: Floats
    distance_bins: int = 256
    encoder: Parameters | None = None


@dataclass(frozen=True)
class AnnotateJob:
    """Buy labels: `quota[k]` rows of each cluster, drawn at random among those within `near[k]` of its centroid."""

    snapshots: tuple[str, ...]
    centroids: Floats
    near: Floats
    quota: Counts
    seed: int
    encoder: Parameters | None = None
    wants: int = 1  # people that must agree on a row's label


@dataclass(frozen=True)
class SpreadJob:
    """Write the labels of a training run: bought rows, and rows within `reach[k]` of a cluster that has a label.

    label[k] is -1 where the annotated members of the cluster did not agree.
    """

    labelling: str
    snapshots: tuple[str, ...]
    centroids: Floats
    reach: Floats
    label: Counts
    weight: float
    encoder: Parameters | None = None


@dataclass(frozen=True)
class ReferenceJob:
    """Write what a monitor compares this site's traffic with, for one model version; only a count comes back."""

    snapshots: tuple[str, ...]
    parameters: Parameters
    centroids: Floats
    version: str


Job = TrainJob | EvaluateJob | DescribeJob | ClusterJob | AssignJob | AnnotateJob | SpreadJob | ReferenceJob

# -- answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainAnswer:
    update: torch.Tensor  # float32 [>= size]: end minus start of the local work, flat, and what the rule adds to it
    examples: float  # sum of the rows' weights
    weight: float  # in the mean: the examples, or 1 under a rule that counts sites
    loss: float  # mean over the local steps


@dataclass(frozen=True)
class ModelScores:
    """Sums from which accuracy, AUC and calibration follow, for one model at one site."""

    correct: int
    confidence_bins: Floats  # [3, bins]: rows, summed confidence, correct rows, by confidence
    scores: Counts  # [classes, 2, score bins]: histogram of each class' probability, for other and own rows
    replicate_correct: Floats  # [replicates]
    replicate_scores: Floats  # [replicates, 2, score bins], of class 1; empty unless the task's metric is auc


@dataclass(frozen=True)
class EvaluateAnswer:
    rows: int
    models: tuple[ModelScores, ...]
    slices: dict[str, Counts]  # column → [quantiles, 1 + models]: rows and correct rows
    replicate_rows: Floats  # [replicates]


@dataclass(frozen=True)
class DescribeAnswer:
    rows: int
    histograms: dict[str, Counts]


@dataclass(frozen=True)
class ClusterAnswer:
    """Centroids of at least MINIMUM_ROWS rows each; a count of 0 where there are fewer of them than asked for."""

    centroids: Floats  # [clusters, d]
    counts: Counts  # [clusters]


@dataclass(frozen=True)
class AssignAnswer:
    sums: Floats  # [k, d]; zero where the count is below MINIMUM_ROWS
    counts: Counts  # [k]
    distances: Counts  # [k, bins]: histogram of the distance to the centroid


@dataclass(frozen=True)
class AnnotateAnswer:
    histogram: Counts  # [k, classes] of the labels bought
    bought: int
    new: int  # of these, not paid for before this answer
    pending: int  # rows that were asked for and that nobody has labelled yet


@dataclass(frozen=True)
class SpreadAnswer:
    bought: int
    spread: int
    unlabelled: int
    spread_correct: int  # against the archive's truth where the site has it: for the rehearsal's report
    spread_known: int


@dataclass(frozen=True)
class ReferenceAnswer:
    rows: int


@dataclass(frozen=True)
class Failure:
    """A site that could not answer; the round goes on without it."""

    reason: str


Answer = (
    TrainAnswer
    | EvaluateAnswer
    | DescribeAnswer
    | ClusterAnswer
    | AssignAnswer
    | AnnotateAnswer
    | SpreadAnswer
    | ReferenceAnswer
)
