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
from pipelines.federated.watching import Watch
from pipelines.federated.work import LocalWork

Parameters = dict[str, torch.Tensor]
"""A model's weights or an update of them, by name, float32."""

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Halves = NDArray[np.float16]
"""Centroids and bases as they travel: three digits are plenty for a place among rows, and the bytes are a quarter."""
Counts = NDArray[np.int64]

MINIMUM_ROWS = 2
"""Rows that a sum of embeddings is made of at least: the mean of one row is that row, and with it its image."""


DISTANCE_RANGE = 3.0
"""Distances between embeddings of one or two parts of length 1 lie below this."""


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
    """Histograms of the quality columns over [0, 1] of those snapshots; or of what a monitor watches."""

    snapshots: tuple[str, ...]
    split: str
    bins: int = 200
    watch: Watch | None = None


@dataclass(frozen=True)
class ClusterJob:
    """Embed the site's training rows, keep that as `space` at the site, and cluster them: where global clusters start.

    encoder: weights of the task's model whose features join the task's embedding.
    """

    space: str
    snapshots: tuple[str, ...]
    clusters: int
    seed: int
    encoder: Parameters | None = None


@dataclass(frozen=True)
class ProjectJob:
    """Keep the rows of `space`, projected by a basis [d, p], as `onto`: from here on a centroid is p numbers."""

    space: str
    onto: str
    basis: Halves


@dataclass(frozen=True)
class AssignJob:
    """Assign the rows of a space to the global centroids [k, p]: one federated Lloyd iteration.

    bins: of a histogram of the distances between 0 and DISTANCE_RANGE; 0 asks for none.
    """

    space: str
    centroids: Halves
    bins: int = 0


@dataclass(frozen=True)
class AnnotateJob:
    """Buy labels by a strategy of `choosing.STRATEGIES`.

    quota: [k] rows of each cluster, or [1] rows of the site where the strategy knows no clusters.
    known, radius: [m, p], [m], the clusters whose outside is bought first where the strategy asks for what is new.
    parameters: the model whose doubts choose, where the strategy needs one.
    """

    space: str
    snapshots: tuple[str, ...]
    centroids: Halves
    strategy: str
    quota: Counts
    seed: int
    known: Halves
    radius: Singles
    parameters: Parameters | None = None
    wants: int = 1  # people that must agree on a row's label


@dataclass(frozen=True)
class SpreadJob:
    """Write the labels of a training run: the bought ones, and those that they give other rows.

    histogram: [k, classes] of the labels bought in each cluster, at all sites. radius: [k], how far one cluster speaks.
    weight: of a spread label of full confidence; confidence: the least that is used; check: the share of held-out
    bought labels that spreading must get right at this site, else it writes none.
    """

    labelling: str
    space: str
    how: str
    centroids: Halves
    histogram: Counts
    radius: Singles
    weight: float
    confidence: float
    check: float
    seed: int


@dataclass(frozen=True)
class ReferenceJob:
    """Write what a monitor compares this site's traffic with, for one model version; only a count comes back."""

    snapshots: tuple[str, ...]
    parameters: Parameters
    centroids: Floats
    version: str


@dataclass(frozen=True)
class Case:
    """A wrong answer that somebody has labelled: its picture, the true class, and what was answered how surely.

    source: where it comes from, as the report names it.
    """

    png: bytes
    label: int
    prediction: int
    confidence: float
    source: str = "traffic"


@dataclass(frozen=True)
class DiagnoseJob:
    """Why does the model err at this site, on its evaluation rows and on the cases that are sent along?

    labels, truths: of all sites' learned rows and of their evaluation rows, how many of each cluster are of which
    class; None asks for the site's own such counts and for nothing else. radii[k]: within it lies what counts as one of
    the other sites' rows of cluster k. rate: of rows like the learned ones, the share that may be called unseen or
    unreadable. explained: errors at most that the page at the site explains one by one.
    """

    version: str
    labellings: tuple[str, ...]
    snapshots: tuple[str, ...]
    evaluation: tuple[str, ...]
    parameters: Parameters
    centroids: Floats  # [k, d]
    radii: Floats  # [k]
    rate: float
    labels: Counts | None = None  # [k, classes]
    truths: Counts | None = None  # [k, classes]
    explained: int = 0
    cases: tuple[Case, ...] = ()


Job = (
    TrainJob
    | EvaluateJob
    | DescribeJob
    | ClusterJob
    | ProjectJob
    | AssignJob
    | AnnotateJob
    | SpreadJob
    | ReferenceJob
    | DiagnoseJob
)

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

    centroids: Halves  # [clusters, d]
    counts: Counts  # [clusters]


@dataclass(frozen=True)
class ProjectAnswer:
    rows: int


@dataclass(frozen=True)
class AssignAnswer:
    """Per global cluster; means, squares and closest of clusters with fewer rows than MINIMUM_ROWS are 0, 0 and inf."""

    means: Halves  # [k, p] of the site's rows there
    counts: Counts  # [k]
    squares: Singles  # [k]: mean squared distance to the centroid
    closest: Singles  # [k]: mean distance of the MINIMUM_ROWS nearest rows
    distances: Counts  # [k, bins]: histogram of the distance to the centroid


@dataclass(frozen=True)
class AnnotateAnswer:
    histogram: Counts  # [k, classes] of the labels ever bought of these rows
    bought: int  # of the quota
    new: int  # of these, not paid for before
    pending: int  # rows that were asked for and that nobody has labelled yet


@dataclass(frozen=True)
class SpreadAnswer:
    bought: int
    spread: int
    unlabelled: int
    spread_correct: int  # against the archive's truth where the site has it: for the rehearsal's report
    spread_known: int
    checked: int  # bought labels that were held out and reached
    check_correct: int
    off: bool  # the check failed: nothing was spread here
    suspects: int  # bought labels that confident learning doubts; which ones stays here


@dataclass(frozen=True)
class ReferenceAnswer:
    rows: int


@dataclass(frozen=True)
class DiagnoseAnswer:
    """Counts of errors by cause, in the order of `causes.CAUSES`; rows, pictures and row ids stay at the site."""

    rows: int  # that were judged, cases included
    classes: Counts  # [4, classes]: by true class
    clusters: Counts  # [4, k]: by nearest cluster
    calibration: Counts  # [2, bins]: p-values (unseen, unreadable) of rows the model was right on, from 0 to 1
    labels: Counts  # [k, classes]: the site's learned rows
    truths: Counts  # [k, classes]: its evaluation rows
    suspects: Counts  # [k]: of them, those whose label is to be checked
    cases: Counts  # [cases of the job]: the cause of each, -1 where it is no wrong answer that was looked at
    explained: int


@dataclass(frozen=True)
class Failure:
    """A site that could not answer; the round goes on without it."""

    reason: str


Answer = (
    TrainAnswer
    | EvaluateAnswer
    | DescribeAnswer
    | ClusterAnswer
    | ProjectAnswer
    | AssignAnswer
    | AnnotateAnswer
    | SpreadAnswer
    | ReferenceAnswer
    | DiagnoseAnswer
)
