"""Sums from which accuracy, AUC and calibration follow exactly (AUC: up to the bin width), and how they add up.

Each site makes such sums over its own rows; the server adds them and never sees a row. The paired bootstrap is a
Poisson bootstrap (Chamandy et al., "Estimating uncertainty for massive data streams", 2012): every row draws its
own Poisson(1) weight per replicate, the same for both models, so replicates add up over sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from models.images import Images, to_tensor
from models.task import Task
from pipelines.federated.jobs import Counts, Floats, ModelScores, Parameters

SCORE_BINS = 1000
REPLICATE_BINS = 100
CONFIDENCE_BINS = 15


def class_probabilities(task: Task, parameters: Parameters, images: Images) -> Floats:
    """What the task's model with these weights gives [n, classes] for images uint8 [n, height, width, channels]."""
    model = task.build_model().eval()
    with torch.no_grad():
        outputs = [
            functional_call(model, parameters, (to_tensor(images[start : start + 512]),))
            for start in range(0, len(images), 512)
        ]
    if not outputs:
        return np.zeros((0, len(task.classes)))
    return np.asarray(torch.softmax(torch.cat(outputs).double(), dim=1).numpy())


def replicate_weights(replicates: int, rows: int, seed: int) -> Floats:
    """Poisson(1) weights [replicates, rows]."""
    return np.random.default_rng(seed).poisson(1.0, size=(replicates, rows)).astype(np.float64)


def score_model(probabilities: Floats, labels: Counts, weights: Floats, with_auc: bool) -> ModelScores:
    """A model's sums over rows. probabilities: [n, classes]; labels: [n]; weights: [replicates, n]."""
    rows, classes = probabilities.shape
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    confidence = probabilities.max(axis=1) if rows else np.zeros(0)
    bin_of = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    confidence_bins = np.stack(
        [np.bincount(bin_of, weights=w, minlength=CONFIDENCE_BINS) for w in (np.ones(rows), confidence, correct)]
    ).astype(np.float64)
    scores = np.zeros((classes, 2, SCORE_BINS), dtype=np.int64)
    for index in range(classes):
        bins = np.minimum((probabilities[:, index] * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
        np.add.at(scores[index], ((labels == index).astype(np.int64), bins), 1)
    replicate_scores = np.zeros((0, 2, REPLICATE_BINS))
    if with_auc:
        bins = np.minimum((probabilities[:, 1] * REPLICATE_BINS).astype(np.int64), REPLICATE_BINS - 1)
        one_hot = np.zeros((rows, 2, REPLICATE_BINS))
        one_hot[np.arange(rows), (labels == 1).astype(np.int64), bins] = 1.0
        replicate_scores = np.einsum("rn,ncb->rcb", weights, one_hot, optimize=True)
    return ModelScores(int(correct.sum()), confidence_bins, scores, weights @ correct, replicate_scores)


def add_scores(parts: Sequence[ModelScores]) -> ModelScores:
    """The sums of all sites together."""
    return ModelScores(*(sum(sums) for sums in zip(*(vars(part).values() for part in parts), strict=True)))


def histogram_auc(histogram: NDArray[np.generic]) -> Floats:
    """Area under the ROC curve from score histograms [..., 2, bins] (negatives, positives); ties count one half.

    NaN where a class is absent.
    """
    negatives, positives = (histogram[..., side, :].astype(np.float64) for side in (0, 1))
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum(axis=-1)
    pairs = negatives.sum(axis=-1) * positives.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(pairs > 0, wins / pairs, np.nan))


def macro_auc(scores: Counts) -> float:
    """Mean one-against-rest AUC over the classes that have both sides; for two classes, the AUC of class 1."""
    areas = histogram_auc(scores)
    if len(areas) == 2:
        return float(areas[1])
    return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")


def expected_calibration_error(confidence_bins: Floats) -> float:
    """ECE with equal-width bins (Guo et al., "On calibration of modern neural networks", ICML 2017)."""
    rows, confidence, correct = confidence_bins
    total = rows.sum()
    return float(np.abs(confidence - correct).sum() / total) if total else float("nan")


def slice_counts(values: Floats, edges: Sequence[float], correct: NDArray[np.bool_]) -> Counts:
    """[quantiles, 1 + models]: rows and each model's correct rows, by the quantile a value falls into."""
    which = np.searchsorted(np.asarray(edges), values, side="right")
    count = len(edges) + 1
    columns = [np.bincount(which, minlength=count)]
    columns += [np.bincount(which, weights=row.astype(np.float64), minlength=count) for row in correct]
    return np.stack(columns, axis=1).astype(np.int64)
