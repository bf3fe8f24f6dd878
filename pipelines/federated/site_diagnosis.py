"""A site looks for the causes of the model's errors, on rows that stay: what it finds leaves as counts alone.

In go a site and a DiagnoseJob. Out come the answer, the labels to be checked (doubts.py), and a page with
pictures (`reports/`), both in the site's own store.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.draws import draw_seed
from models.errors import BadInput
from models.images import Images, content_hash, decode_png, encode_png
from models.quality import QUALITY_COLUMNS, quality
from pipelines.federated.causes import (
    CAUSES,
    MISLABELLED,
    Causes,
    Federated,
    Learned,
    Trusted,
    Wrong,
    causes,
    distances,
    unreadable_p,
    unseen_p,
    votes_of_others,
)
from pipelines.federated.doubts import Doubt, doubt
from pipelines.federated.jobs import Counts, DiagnoseAnswer, DiagnoseJob, Floats
from pipelines.federated.scoring import class_probabilities
from pipelines.federated.site_report import shown_errors, write_page

if TYPE_CHECKING:
    from pipelines.federated.site import Site

BINS = 20
"""Of the p-values that say whether the tests keep their rate."""
ROWS_MOST, ERRORS_MOST = 4000, 1000
"""Of more learned or judged rows, or errors, so many are drawn, which bounds the time: each is compared with each."""


@dataclass(frozen=True)
class Errors:
    """A site's wrong answers: images [e, h, w, c], true and predicted class, confidence and source of each [e].

    judged, sent: [e], the place among the site's evaluation rows and among the job's cases, -1 where it is none.
    """

    images: Images
    truth: Counts
    prediction: Counts
    confidence: Floats
    source: NDArray[np.str_]
    judged: Counts
    sent: Counts

    def take(self, places: Counts) -> Errors:
        return Errors(*(each[places] for each in vars(self).values()))


@dataclass(frozen=True)
class Examined:
    """What a site found out and keeps. images: of the learned rows; votes: `votes_of_others` on them; rows: judged in
    all; cluster: of each error; left_out: errors that were too many."""

    learned: Learned
    trusted: Trusted
    images: Images
    votes: Floats
    errors: Errors
    cluster: Counts
    found: Causes
    rows: int
    calibration: Counts
    left_out: int = 0


def diagnose(site: Site, job: DiagnoseJob) -> DiagnoseAnswer:
    """The answer to the job; writes the site's suspects and, if asked to explain errors, its page."""
    clusters, classes = len(job.centroids), len(site.task.classes)
    cases = np.full(len(job.cases), -1)
    if job.labels is None:
        by_class, by_cluster = (np.zeros((len(CAUSES), size), dtype=np.int64) for size in (classes, clusters))
        nothing = np.zeros((2, BINS), dtype=np.int64)
        counts = _counts(site, job, _learned(site, job)[0], _trusted(site, job)[0])
        return DiagnoseAnswer(
            0, by_class, by_cluster, nothing, *counts, np.zeros(clusters, dtype=np.int64), cases, 0
        )  # fmt: skip
    examined = examine(site, job)
    labels, truths = _counts(site, job, examined.learned, examined.trusted)
    cause = examined.found.cause
    by_class = _counted((len(CAUSES), classes), cause, examined.errors.truth)
    mine = examined.errors.sent >= 0
    cases[examined.errors.sent[mine]] = cause[mine]
    doubted = _keep_suspects(site, job, examined)
    shown = shown_errors(site, job, examined) if job.explained else ()
    if job.explained:
        write_page(site, job, examined, by_class, shown)
    return DiagnoseAnswer(
        rows=examined.rows,
        classes=by_class,
        clusters=_counted((len(CAUSES), clusters), cause, examined.cluster),
        calibration=examined.calibration,
        labels=labels,
        truths=truths,
        suspects=np.bincount(examined.learned.cluster[doubted], minlength=clusters).astype(np.int64),
        cases=cases,
        explained=len(shown),
    )


def examine(site: Site, job: DiagnoseJob) -> Examined:
    """Every wrong answer with its cause; nothing is written. The job must carry the federation's counts."""
    assert job.labels is not None
    assert job.truths is not None
    learned, images = _learned(site, job)
    trusted, pictures = _trusted(site, job)
    others = job.labels - _counted(job.labels.shape, learned.cluster, learned.labels)
    federated = Federated(job.centroids, job.radii, np.maximum(others, 0), job.truths)
    chance = class_probabilities(site.task, job.parameters, pictures)
    right = chance.argmax(axis=1) == trusted.labels
    wrong = np.flatnonzero(~right)
    own = Errors(
        pictures[wrong], trusted.labels[wrong], chance.argmax(axis=1)[wrong], chance.max(axis=1)[wrong],
        np.full(len(wrong), "evaluation"), wrong, np.full(len(wrong), -1),
    )  # fmt: skip
    errors = _with_cases(site, job, own)
    every = len(errors.truth)
    errors = errors.take(_some(every, ERRORS_MOST, site.name))
    features = _features(site, errors.images, job)
    cluster = _clusters(features, job)
    asked = Wrong(
        features, quality_of(errors.images), errors.truth, errors.prediction, cluster, errors.judged
    )  # fmt: skip
    votes = votes_of_others(learned, len(site.task.classes))
    found = causes(learned, trusted, federated, asked, job.rate, votes)
    p_values = (
        unseen_p(learned, trusted.features[right], trusted.labels[right]),
        unreadable_p(learned.quality, quality_of(pictures[right]))[0],
    )
    calibration = np.stack([np.histogram(p, bins=BINS, range=(0.0, 1.0))[0] for p in p_values]).astype(np.int64)
    rows = len(trusted.labels) + every - len(wrong)
    left_out = every - len(errors.truth)
    return Examined(learned, trusted, images, votes, errors, cluster, found, rows, calibration, left_out)


def _counts(site: Site, job: DiagnoseJob, learned: Learned, trusted: Trusted) -> tuple[Counts, Counts]:
    """[k, classes] of the learned and of the trusted rows: how many of each cluster are of which class."""
    shape = len(job.centroids), len(site.task.classes)
    return (
        _counted(shape, learned.cluster, learned.labels),
        _counted(shape, _clusters(trusted.features, job), trusted.labels),
    )


def _learned(site: Site, job: DiagnoseJob) -> tuple[Learned, Images]:
    rows = site.labelled_rows(job.labellings, job.snapshots, ())
    some = _some(len(rows.images), ROWS_MOST, site.name)
    images, labels = rows.images[some], rows.labels.numpy()[some]
    features = _features(site, images, job)
    accepted, _ = site.images(job.snapshots, "train")
    columns = accepted.reindex(columns=list(QUALITY_COLUMNS)).to_numpy(dtype=np.float64)
    columns = columns[_some(len(columns), ROWS_MOST, site.name)]
    return Learned(features, labels, columns, _clusters(features, job)), images


def _trusted(site: Site, job: DiagnoseJob) -> tuple[Trusted, Images]:
    """The evaluation rows whose truth is known."""
    rows, images = site.images(job.evaluation, "evaluation")
    truth = site.store.truth(rows["row_id"])
    known = np.flatnonzero(truth.notna().to_numpy(dtype=bool))
    known = known[_some(len(known), ROWS_MOST, site.name)]
    images = images[known]
    return Trusted(_features(site, images, job), truth.iloc[known].to_numpy(dtype=np.int64)), images


def _some(count: int, most: int, name: str) -> Counts:
    """Places of all, or of `most` drawn at random, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(draw_seed("diagnose", name)).choice(count, most, replace=False))


def _features(site: Site, images: Images, job: DiagnoseJob) -> Floats:
    """float64 [n, d]: the task's own embedding. Measured on the digits, with the model's features beside it ordinary
    errors look unseen three times as often, because a model lays out apart what it gets wrong."""
    if not len(images):
        return np.zeros((0, job.centroids.shape[1]))
    return site.task.embed(images).astype(np.float64)


def _clusters(features: Floats, job: DiagnoseJob) -> Counts:
    return distances(features, job.centroids).argmin(axis=1) if len(features) else np.zeros(0, dtype=np.int64)


def quality_of(images: Images) -> Floats:
    """[n, columns]."""
    return quality(images).to_numpy() if len(images) else np.zeros((0, len(QUALITY_COLUMNS)))


def _with_cases(site: Site, job: DiagnoseJob, errors: Errors) -> Errors:
    """The errors on evaluation rows and, after them, those of the cases that can be read and are no such row.

    A case that is such a row, with the same truth, is that row's error.
    """
    rows, _ = site.images(job.evaluation, "evaluation")
    known = set(rows["row_id"])
    own = {content_hash(encode_png(image)): i for i, image in enumerate(errors.images)} if job.cases else {}
    images, kept, sent = [], [], []
    for place, case in enumerate(job.cases):
        with suppress(BadInput):
            name = content_hash(case.png)
            if name in own and errors.truth[own[name]] == case.label:
                errors.sent[own[name]] = place
            elif case.prediction != case.label and name not in known:
                images.append(decode_png(case.png, site.task.input))
                kept.append(case)
                sent.append(place)
    if not kept:
        return errors
    more = Errors(
        np.stack(images),
        np.array([case.label for case in kept], dtype=np.int64),
        np.array([case.prediction for case in kept], dtype=np.int64),
        np.array([case.confidence for case in kept]),
        np.array([case.source for case in kept]),
        np.full(len(kept), -1),
        np.array(sent, dtype=np.int64),
    )
    return Errors(*(np.concatenate([getattr(each, name) for each in (errors, more)]) for name in vars(errors)))


def _counted(shape: tuple[int, ...], *places: Counts) -> Counts:
    counts = np.zeros(shape, dtype=np.int64)
    np.add.at(counts, places, 1)
    return counts


def _keep_suspects(site: Site, job: DiagnoseJob, examined: Examined) -> NDArray[np.bool_]:
    """[n]: the learned rows whose label is to be checked: those that mislead an error, and those that most of the
    voters contradict. On the retina's spread labels, of which 19% are wrong, half of these were, and they were half of
    the wrong ones."""
    learned, found, errors = examined.learned, examined.found, examined.errors
    suggestion = examined.votes.argmax(axis=1)
    doubted: NDArray[np.bool_] = (suggestion != learned.labels) & (examined.votes.max(axis=1, initial=0.0) > 0.5)
    for place in np.flatnonzero(found.cause == MISLABELLED):
        near = found.nearest[place]
        near = near[learned.labels[near] == errors.prediction[place]]
        doubted[near], suggestion[near] = True, errors.truth[place]
    support = examined.votes[np.arange(len(doubted)), learned.labels]
    doubt(site.store, "diagnosis", [
        Doubt(row_id, int(learned.labels[i]), int(suggestion[i]), float(support[i]))
        for i in np.flatnonzero(doubted)
        for row_id in [content_hash(encode_png(examined.images[i]))]
    ])  # fmt: skip
    return doubted
