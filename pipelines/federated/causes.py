"""Why was an answer wrong? One of four causes, from what lies near it among the rows that were learned from.

In go what a site learned, what is known to be true, what the federation counted, and wrong answers as features,
quality, true and predicted class; out comes a cause each and the numbers that led to it.

*Unseen* and *unreadable* are conformal tests: put the row among the learned ones, give every row a score, and the
p-value is the share of scores at least as large as its own (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random
World", 2005). So of rows that are like the learned ones no more than the stated rate is called so, however few rows
there are and whatever their distribution. *Mislabelled* is decided by votes on what a learned row shows, as in
confident learning (Northcutt, Jiang & Chuang, JAIR 2021), by voters outside its own cluster or with a label that is
trusted, because wrong labels come in clusters and then agree with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.federated.jobs import MINIMUM_ROWS, Counts, Floats

UNSEEN, MISLABELLED, MISLEARNED, UNREADABLE = range(4)
CAUSES = ("unseen", "mislabelled", "mislearned", "unreadable")

MEANING = {
    "unseen": "Nothing like it with its true label was learned, here or at another site.",
    "mislabelled": "Rows like it were learned, but with labels that look wrong.",
    "mislearned": "Rows like it were learned with the right label, and it still errs.",
    "unreadable": "Its light, sharpness or noise are not those of the learned rows.",
}
NEXT_STEP = {
    "unseen": "Label rows like these.",
    "mislabelled": "Check the labels near them.",
    "mislearned": "Train longer, or with more weight on these.",
    "unreadable": "Fix the camera or the light.",
}

# Tuned on the digits, on draws of their own (seeds 100 and 101 of benchmarks/diagnosis.py), and on nothing else.
NEAREST = 5
"""Learned rows near an error that are asked for their labels."""
VOTERS, TRUSTED_VOTERS = 10, 3
"""Learned rows of other clusters, and rows with a trusted label, that vote on what a learned row shows."""
NEAR_SHARE = 0.95
"""A trusted row votes within the distance in which this share of learned rows has one of its own label."""
DOUBT = 0.8
"""Votes for the truth less votes for the label, of three kinds of voters together (-3 to 3): above it, it is wrong."""
OUT_OF_RANGE = 1.5
"""How many times the largest deviation of any learned row makes a picture unreadable."""


@dataclass(frozen=True)
class Learned:
    """What the model learned at a site: features [n, d], labels [n], nearest cluster [n].

    quality: [m, columns], of every row that was accepted for training there, with or without a label.
    """

    features: Floats
    labels: Counts
    quality: Floats
    cluster: Counts


@dataclass(frozen=True)
class Trusted:
    """Rows whose label is true: features [t, d], labels [t]."""

    features: Floats
    labels: Counts


@dataclass(frozen=True)
class Federated:
    """What all sites counted by cluster: centroids [k, d]; radii [k], labels [k, classes] of what the *other* sites
    learned; truths [k, classes] of the rows of all sites whose label is trusted."""

    centroids: Floats
    radii: Floats
    labels: Counts
    truths: Counts


@dataclass(frozen=True)
class Wrong:
    """Wrong answers: features [e, d], quality [e, columns], true and predicted class [e], nearest cluster [e].

    trusted: [e], which of the trusted rows it is, -1 for none of them: nothing votes on itself.
    """

    features: Floats
    quality: Floats
    truth: Counts
    prediction: Counts
    cluster: Counts
    trusted: Counts


@dataclass(frozen=True)
class Causes:
    """A cause for each wrong answer, an index into CAUSES, with the numbers that led to it; all [e] but `nearest`.

    agreeing: of the nearest learned rows, the share whose label is the truth. doubt: see DOUBT, of the most doubtful
    near row that says what was predicted (-3 where there is none). elsewhere: other sites learned rows like it.
    """

    cause: Counts
    p_unseen: Floats
    p_unreadable: Floats
    worst_column: Counts
    agreeing: Floats
    doubt: Floats
    elsewhere: NDArray[np.bool_]
    nearest: Counts  # [e, NEAREST or fewer]: places among the learned rows, nearest first


def by_cause(by_class: Counts) -> dict[str, int]:
    """Cause → errors, of counts [4, classes]."""
    return dict(zip(CAUSES, by_class.sum(axis=1).tolist(), strict=True))


def distances(one: Floats, other: Floats) -> Floats:
    """Euclidean, [n, m]."""
    squared = (one**2).sum(1)[:, None] - 2.0 * one @ other.T + (other**2).sum(1)[None]
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def nearest_of_own(learned: Learned) -> Floats:
    """[n]: the distance from each learned row to the nearest other one with its label; infinite where it has none."""
    away = distances(learned.features, learned.features)
    away[learned.labels[:, None] != learned.labels] = np.inf
    np.fill_diagonal(away, np.inf)
    return np.asarray(away.min(axis=1, initial=np.inf))


def unseen_p(learned: Learned, asked: Floats, truth: Counts) -> Floats:
    """[e]: the p-value of "such a row with such a label was learned", by the distance to the nearest row of its label.

    asked: [e, d]; truth: [e], their true classes.
    """
    own = nearest_of_own(learned)
    to = distances(asked, learned.features)
    to[truth[:, None] != learned.labels] = np.inf
    score = to.min(axis=1, initial=np.inf)
    # A learned row's score with the asked row among the others.
    return np.asarray((1 + (np.minimum(own, to) >= score[:, None]).sum(axis=1)) / (len(own) + 1))


def unreadable_p(learned: Floats, asked: Floats) -> tuple[Floats, Floats, Counts]:
    """[e] each: the p-value of "this picture was taken like the learned ones", how many times the largest deviation of
    a learned row its own is, and the column that deviates most.

    learned: [n, columns]; asked: [e, columns]. A row's deviation is that of its worst column from the median, in units
    of the column's median absolute deviation.
    """
    p, times, worst = np.ones(len(asked)), np.zeros(len(asked)), np.zeros(len(asked), dtype=np.int64)
    for place, row in enumerate(asked if len(learned) else asked[:0]):
        every = np.vstack([learned, row])
        away = np.abs(every - np.median(every, axis=0))
        scores = away / (np.median(away, axis=0) + 1e-6)
        worst[place] = scores[-1].argmax()
        largest = scores.max(axis=1)
        p[place] = (largest >= largest[-1]).mean()
        times[place] = largest[-1] / max(float(largest[:-1].max()), 1e-6)
    return p, times, worst


def learned_elsewhere(federated: Federated, asked: Floats, truth: Counts) -> NDArray[np.bool_]:
    """[e]: whether a row lies within a cluster in which other sites learned rows with its label."""
    inside = distances(asked, federated.centroids) <= federated.radii
    return np.asarray((inside & (federated.labels[:, truth].T >= MINIMUM_ROWS)).any(axis=1))


def votes_of_others(learned: Learned, classes: int) -> Floats:
    """[n, classes]: what the nearest learned rows of other clusters say each learned row shows; rows of 0 or sum 1."""
    away = distances(learned.features, learned.features)
    away[learned.cluster[:, None] == learned.cluster] = np.inf
    voters = np.argsort(away, axis=1, kind="stable")[:, :VOTERS]
    return _shares(learned.labels[voters], np.isfinite(np.take_along_axis(away, voters, axis=1)), classes)


def _shares(labels: Counts, counted: NDArray[np.bool_], classes: int) -> Floats:
    """[n, classes] of labels [n, voters]: the share of voters for each class, of all voters whether counted or not."""
    found = np.zeros((len(labels), classes))
    np.add.at(found, (np.arange(len(labels))[:, None], labels), counted.astype(np.float64))
    return np.asarray(found / max(labels.shape[1], 1))


def causes(
    learned: Learned, trusted: Trusted, federated: Federated, wrong: Wrong, rate: float, votes: Floats | None = None
) -> Causes:
    """Why each answer was wrong. rate: see `DiagnoseJob.rate`; votes: `votes_of_others(learned)`, if known already.

    In this order: a picture that cannot be read says nothing else; labels that are wrong speak for every other cause.
    """
    votes = votes_of_others(learned, federated.labels.shape[1]) if votes is None else votes
    p_unseen = unseen_p(learned, wrong.features, wrong.truth)
    p_unreadable, times, worst = unreadable_p(learned.quality, wrong.quality)
    elsewhere = learned_elsewhere(federated, wrong.features, wrong.truth)
    nearest = np.argsort(distances(wrong.features, learned.features), axis=1, kind="stable")[:, :NEAREST]
    agreeing = (learned.labels[nearest] == wrong.truth[:, None]).sum(axis=1) / max(nearest.shape[1], 1)
    doubt = _doubt(learned, trusted, federated, wrong, nearest, votes)
    cause = np.where((p_unseen <= rate) & ~elsewhere & (agreeing < 0.5), UNSEEN, MISLEARNED)
    cause[doubt > DOUBT] = MISLABELLED
    cause[(p_unreadable <= rate) & (times > OUT_OF_RANGE)] = UNREADABLE
    return Causes(cause, p_unseen, p_unreadable, worst, agreeing, doubt, elsewhere, nearest)


def _doubt(
    learned: Learned, trusted: Trusted, federated: Federated, wrong: Wrong, nearest: Counts, votes: Floats
) -> Floats:
    """[e]: see `Causes.doubt`. The three kinds of voters: trusted rows near the learned row, trusted rows of all sites
    in its cluster, learned rows of other clusters."""
    away = distances(learned.features, trusted.features)
    own = nearest_of_own(learned)
    own = own[np.isfinite(own)]
    reach = float(np.quantile(own, NEAR_SHARE)) if len(own) else 0.0
    doubt = np.full(len(wrong.truth), -3.0)
    for place, (truth, prediction, me) in enumerate(zip(wrong.truth, wrong.prediction, wrong.trusted, strict=True)):
        near = nearest[place][learned.labels[nearest[place]] == prediction]
        if not len(near):
            continue
        to = away[near]
        if me >= 0:
            to[:, me] = np.inf
        voters = np.argsort(to, axis=1, kind="stable")[:, :TRUSTED_VOTERS]
        close = _shares(trusted.labels[voters], np.take_along_axis(to, voters, axis=1) <= reach, votes.shape[1])
        counted = federated.truths[learned.cluster[near]].astype(np.float64)
        if me >= 0:
            counted[learned.cluster[near] == wrong.cluster[place], truth] -= 1.0
        counted /= np.maximum(counted.sum(axis=1, keepdims=True), 1.0)
        said = close + counted + votes[near]
        doubt[place] = (said[:, truth] - said[:, prediction]).max()
    return doubt
