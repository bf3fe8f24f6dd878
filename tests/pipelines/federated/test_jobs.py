"""The privacy boundary: what crosses it is listed here by name, and nothing of it grows with a site's rows."""

from __future__ import annotations

import dataclasses
import pickle
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_sites import CLASSES, LABELLING, TINY, initial, make_site, pictures

from models.embedding import normalised_pixels
from models.images import encode_png, to_tensor
from pipelines.federated import jobs
from pipelines.federated.layout import Layout
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.site import Site
from pipelines.federated.stages import ClipByNorm
from pipelines.federated.store import stack_images
from pipelines.federated.watching import Watch
from pipelines.federated.work import LocalWork

# Every type that leaves a site. A new one belongs here only after somebody has asked what it tells about one row.
CROSSES = {
    "TrainAnswer": {"update", "examples", "weight", "loss"},
    "EvaluateAnswer": {"rows", "models", "slices", "replicate_rows"},
    "ModelScores": {"correct", "confidence_bins", "scores", "replicate_correct", "replicate_scores"},
    "DescribeAnswer": {"rows", "histograms"},
    "ClusterAnswer": {"centroids", "counts"},
    "ProjectAnswer": {"rows"},
    "AssignAnswer": {"means", "counts", "squares", "closest", "distances"},
    "AnnotateAnswer": {"histogram", "bought", "new", "pending"},
    "SpreadAnswer": {
        *("bought", "spread", "unlabelled", "spread_correct", "spread_known"),
        *("checked", "check_correct", "off", "suspects"),
    },
    "ReferenceAnswer": {"rows"},
    # Counts of errors and of labels, and the causes of the cases that came with the job, which are nobody's rows here.
    "DiagnoseAnswer": {
        *("rows", "classes", "clusters", "calibration", "labels", "truths", "suspects", "cases", "explained"),
    },
    "Failure": {"reason"},
}
CLUSTERS = 4
WATCHED = {"brightness": (0.2, 0.4, 0.6), "embedding_distance": (0.1, 0.5), "prediction": (0.5, 1.5)}


def kinds_within(kind: Any) -> Iterator[type]:
    """The dataclasses that a type is made of."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from kinds_within(hint)
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        for part in typing.get_args(kind):
            yield from kinds_within(part)


def test_every_type_and_field_that_crosses_the_boundary_is_listed() -> None:
    found = {
        kind.__name__: {f.name for f in dataclasses.fields(kind)} for kind in kinds_within(jobs.Answer | jobs.Failure)
    }
    assert found == CROSSES


def test_a_site_answers_every_job_with_its_own_kind_and_nothing_else(tmp_path: Path) -> None:
    site, train, evaluation = make_site(tmp_path, "site-1", 30, 12)
    asked = every_job(train, evaluation)
    assert {type(job) for job in asked} == set(typing.get_args(jobs.Job))
    for job in asked:
        assert type(site.answer(job)).__name__ == type(job).__name__.removesuffix("Job") + "Answer"


def every_job(train: tuple[str, ...], evaluation: tuple[str, ...], clusters: int = CLUSTERS) -> list[jobs.Job]:
    centroids = np.random.default_rng(5).normal(size=(clusters, 64))
    centroids = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float16)
    edges = {"brightness": (0.2, 0.4, 0.6), "noise": (0.1, 0.2, 0.3)}
    radius, quota = np.full(clusters, 2.0, dtype=np.float32), np.full(1, 2, dtype=np.int64)
    histogram = np.eye(clusters, len(TINY.classes), dtype=np.int64)
    # A rule that keeps something at the site, has something sent along and sends more than the update.
    size = Layout.of(initial()).size
    counts = np.ones((clusters, CLASSES), dtype=np.int64)
    clip, corrected = (ClipByNorm(1.0),), {"rule": SCAFFOLD, "run": "r", "shared": torch.ones(size)}
    return [
        jobs.TrainJob(1, 0, (LABELLING,), train, initial(), LocalWork(epochs=2), stages=clip),
        jobs.TrainJob(2, 0, (LABELLING,), train, initial(), LocalWork(epochs=2), stages=clip, **corrected),
        jobs.EvaluateJob(evaluation, (initial(), initial(1)), edges, 50, 0),
        jobs.DescribeJob(train, "train"),
        jobs.ClusterJob("space", train, clusters, 0, 9_999),
        jobs.ProjectJob("space", "plane", np.eye(64, 2, dtype=np.float16)),
        jobs.AssignJob("space", centroids, True),
        jobs.AssignJob("space", centroids, False, 8),
        jobs.AnnotateJob("space", train, centroids, "margin", quota, 0, centroids, radius, initial()),
        jobs.SpreadJob("another", "space", "graph", centroids, histogram, radius, 0.5, 0.6, 0.5, 0),
        jobs.ReferenceJob(train, initial(), centroids, "1"),
        jobs.DescribeJob((), "new", watch=Watch("1", 0, WATCHED, (), initial(), centroids)),
        jobs.DescribeJob((), "new", watch=Watch("1", 1, WATCHED, train, initial(), centroids)),
        diagnose_job(train, evaluation, centroids.astype(np.float64), np.full(clusters, 2.0)),
        replace(
            diagnose_job(train, evaluation, centroids.astype(np.float64), np.full(clusters, 2.0)),
            labels=counts,
            truths=counts,
        ),
    ]


def diagnose_job(
    train: tuple[str, ...], evaluation: tuple[str, ...], centroids: NDArray[np.float64], radii: NDArray[np.float64]
) -> jobs.DiagnoseJob:
    """With a wrong answer of live traffic sent along."""
    case = jobs.Case(encode_png(pictures(np.zeros(1, dtype=np.int64), 9)[0]), 0, 1, 0.9)
    return jobs.DiagnoseJob(
        "1", (LABELLING,), train, evaluation, initial(), centroids, radii, 0.05, explained=2, cases=(case,)
    )


def shape_of(value: Any) -> Any:
    """An answer's structure: names, types and array shapes, without the numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: shape_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: shape_of(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [shape_of(part) for part in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return (type(value).__name__, str(value.dtype), tuple(value.shape))
    assert isinstance(value, int | float), f"a {type(value).__name__} has no business in an answer"
    return type(value).__name__


@pytest.mark.parametrize("clusters", [CLUSTERS, 40])
@pytest.mark.parametrize("rows", [1, 20])
def test_answers_of_a_small_and_a_large_site_have_one_shape(tmp_path: Path, rows: int, clusters: int) -> None:
    small, *small_ids = make_site(tmp_path, "site-1", rows, rows)
    large, *large_ids = make_site(tmp_path / "more", "site-1", 3 * rows, 3 * rows)
    for one, three in zip(every_job(*small_ids, clusters), every_job(*large_ids, clusters), strict=True):
        assert shape_of(small.answer(one)) == shape_of(large.answer(three)), type(one).__name__


def arrays_in(value: Any) -> Iterator[NDArray[np.float64]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from arrays_in(getattr(value, f.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from arrays_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from arrays_in(part)
    elif isinstance(value, np.ndarray | torch.Tensor):
        yield np.asarray(value, dtype=np.float64)


def holds_vector(arrays: list[NDArray[np.float64]], vectors: NDArray[np.float64]) -> bool:
    """Whether a stretch of the numbers is one of the vectors, up to scale: a scaled picture is a picture."""
    length = vectors.shape[1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for array in arrays:
        for line in array.reshape(-1, array.shape[-1]) if array.size and array.ndim else []:
            for start in range(len(line) - length + 1):
                part = line[start : start + length]
                if (
                    np.isfinite(part).all()
                    and np.linalg.norm(part) > 1e-9
                    and np.abs(unit @ (part / np.linalg.norm(part))).max() > 1 - 1e-6
                ):
                    return True
    return False


@pytest.mark.parametrize("clusters", [CLUSTERS, 12, 200])
@pytest.mark.parametrize("rows", [2, 20])
def test_no_answer_holds_a_row(tmp_path: Path, rows: int, clusters: int) -> None:
    """Also not with so many clusters that each row could have its own."""
    site, train, evaluation = make_site(tmp_path, "site-1", rows, rows)
    table = site.store.rows(train, "train")
    images = stack_images(table["png"], TINY.input)
    secrets = [
        normalised_pixels(images).astype(np.float64),
        to_tensor(images).flatten(1).double().numpy(),
        images.reshape(len(images), -1).astype(np.float64),
    ]
    for job in every_job(train, evaluation, clusters):
        answer = site.answer(job)
        assert not any(row in repr(answer) for row in table["row_id"])
        if isinstance(answer, jobs.TrainAnswer):
            continue  # the gradient of one row by a linear model is that row; of many it is their mix: see below
        arrays = list(arrays_in(answer))
        for secret in secrets:
            assert not holds_vector(arrays, secret), type(answer).__name__


def test_an_update_of_several_rows_is_none_of_them(tmp_path: Path) -> None:
    site, train, evaluation = make_site(tmp_path, "site-1", 13, 3)
    images = stack_images(site.store.rows(train, "train")["png"], TINY.input)
    answers = [site.answer(job) for job in every_job(train, evaluation) if isinstance(job, jobs.TrainJob)]
    assert len(answers) == 2
    for answer in answers:
        assert isinstance(answer, jobs.TrainAnswer)
        assert not holds_vector(list(arrays_in(answer)), to_tensor(images).flatten(1).double().numpy())


def test_a_site_sends_the_update_and_what_its_rule_adds_and_counts_as_the_rule_says(tmp_path: Path) -> None:
    site, train, evaluation = make_site(tmp_path, "site-1", 13, 3)
    size = Layout.of(initial()).size
    plain, corrected = (site.answer(job) for job in every_job(train, evaluation)[:2])
    assert isinstance(plain, jobs.TrainAnswer)
    assert isinstance(corrected, jobs.TrainAnswer)
    assert (plain.update.shape, plain.examples, plain.weight) == ((size,), 13, 13)
    assert (corrected.update.shape, corrected.examples, corrected.weight) == ((2 * size,), 13, 1)


@pytest.mark.parametrize("index", [0, 1])
def test_a_site_without_rows_moves_nothing_and_counts_for_nothing(tmp_path: Path, index: int) -> None:
    site, train, evaluation = make_site(tmp_path, "site-1", 4, 3)
    site.store.write_labels(LABELLING, site.store.labels(LABELLING).head(0))
    answer = site.answer(every_job(train, evaluation)[index])
    assert isinstance(answer, jobs.TrainAnswer)
    assert (answer.examples, answer.weight, answer.loss) == (0, 0, 0)
    assert not answer.update.any()


def test_jobs_and_answers_travel(tmp_path: Path) -> None:
    """A job that went through bytes is answered as it would have been, and its answer comes back the same."""
    site, train, evaluation = make_site(tmp_path, "site-1", 13, 5)
    for job in every_job(train, evaluation):
        here, there = site.answer(job), site.answer(pickle.loads(pickle.dumps(job)))  # noqa: S301 (our own bytes)
        back = pickle.loads(pickle.dumps(there))  # noqa: S301
        assert type(back) is type(here)
        assert shape_of(back) == shape_of(here)
        if not isinstance(job, jobs.AnnotateJob):  # its labels were new the first time
            for one, other in zip(arrays_in(here), arrays_in(back), strict=True):
                assert np.array_equal(one, other), type(job).__name__


def cells_of_one(
    site: Site, train: tuple[str, ...], centroids: NDArray[np.float64]
) -> tuple[jobs.AssignAnswer, jobs.AssignAnswer]:
    """What it answers in a Lloyd iteration, and afterwards."""
    site.answer(jobs.ClusterJob("space", train, 1, 0, 9_999))
    moved, last = (
        site.answer(jobs.AssignJob("space", centroids.astype(np.float16), moving)) for moving in (True, False)
    )
    assert isinstance(moved, jobs.AssignAnswer)
    assert isinstance(last, jobs.AssignAnswer)
    return moved, last


def test_a_row_that_is_alone_in_its_cluster_tells_no_mean_and_no_distance(tmp_path: Path) -> None:
    site, train, _ = make_site(tmp_path, "site-1", 9)
    images = stack_images(site.store.rows(train, "train")["png"], TINY.input)
    features = normalised_pixels(images).astype(np.float64)
    apart = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    counts = {four: np.bincount(apart[:, four].argmin(axis=1)) for four in combinations(range(9), 4)}
    four = next(four for four, rows in counts.items() if 1 in rows and max(rows) >= jobs.MINIMUM_ROWS)
    answer, last = cells_of_one(site, train, features[list(four)])
    assert np.array_equal(answer.counts, last.counts)
    assert not answer.closest.size
    assert not last.means.size
    assert (answer.counts == 1).any()
    assert (answer.counts >= jobs.MINIMUM_ROWS).any()
    assert answer.counts.sum() == 9
    alone = answer.counts < jobs.MINIMUM_ROWS
    assert (answer.means[alone] == 0).all()
    assert (last.squares[alone] == 0).all()
    assert np.isinf(last.closest[alone]).all()
    assert (np.abs(answer.means[~alone].astype(float)).sum(axis=1) > 0).all()


def test_a_failure_tells_its_kind_and_not_the_rows_it_stumbled_over(tmp_path: Path) -> None:
    class Careless:
        name = "careless"

        def label(self, store: Any, row_ids: Any) -> dict[str, int]:
            raise KeyError(list(row_ids))

    site, train, evaluation = make_site(tmp_path, "site-1", 10, 4)
    site.annotator = Careless()
    clustering, annotating = (
        next(job for job in every_job(train, evaluation) if isinstance(job, kind))
        for kind in (jobs.ClusterJob, jobs.AnnotateJob)
    )
    site.answer(clustering)
    answer = site.answer(annotating)
    assert isinstance(answer, jobs.Failure)
    assert "site-1" in answer.reason
    assert "KeyError" in answer.reason
    assert not any(row in answer.reason for row in site.store.rows(train, "train")["row_id"])


def test_a_failure_that_is_our_own_sentence_is_told_whole(tmp_path: Path) -> None:
    site, train, _ = make_site(tmp_path, "site-1", 4)
    answer = site.answer(jobs.TrainJob(1, 0, ("nowhere",), train, initial(), LocalWork()))
    assert answer == jobs.Failure("site-1: site site-1 has no labelling nowhere; run the labelling step first")
