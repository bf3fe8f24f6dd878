"""A site: answers jobs on data that stays. Jobs come in, answers go out, nothing else.

The same code runs inside the embedded engine and, at a hospital, behind whatever carries the jobs there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from models.draws import draw_seed, seeds_of
from models.errors import FedloopError
from models.images import Images
from models.quality import QUALITY_COLUMNS
from models.sensor import fit_sensor
from models.task import Task
from pipelines.federated import clusters, jobs, labelling, watched
from pipelines.federated.jobs import Answer, Failure, Job
from pipelines.federated.kernels.plain import plain
from pipelines.federated.layout import Layout
from pipelines.federated.local_work import LabelledRows, local_updates, site_steps
from pipelines.federated.rules import Seats
from pipelines.federated.scoring import class_probabilities, replicate_weights, score_model, slice_counts
from pipelines.federated.site_diagnosis import diagnose
from pipelines.federated.stages import memory_names
from pipelines.federated.steps import Steps
from pipelines.federated.store import SiteStore, stack_images

LOG = logging.getLogger("fedloop.site")


class Annotator(Protocol):
    """Whoever says what a row shows: a clinician's queue, or in rehearsals an oracle that counts what it reveals."""

    name: str

    def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
        """row_id → class index, for the rows it could label."""
        ...


class OracleAnnotator:
    """Reveals the archive's truth, one row at a time, and counts every reveal."""

    name = "oracle"

    def __init__(self) -> None:
        self.revealed = 0

    def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
        labels = {str(row): int(label) for row, label in store.truth(row_ids).dropna().items()}
        self.revealed += len(labels)
        return labels


class Site:
    """One holder of data. `answer` is the only way in and out.

    Behind it, for the handlers: images(snapshots, split), rows and their pictures, and labelled_rows(labellings,
    snapshots, fresh); both are kept, and are the same however often they are asked for.
    """

    def __init__(self, task: Task, store: SiteStore, annotator: Annotator | None = None) -> None:
        self.task = task
        self.store = store
        self.annotator: Annotator = annotator or OracleAnnotator()
        self.name = store.site
        self.images = lru_cache(maxsize=4)(self._load_images)
        self.labelled_rows = lru_cache(maxsize=1)(self._load_training)
        self._handlers: dict[type, Callable[..., Answer]] = {
            jobs.TrainJob: self.train,
            jobs.EvaluateJob: self.evaluate,
            jobs.DescribeJob: self.describe,
            jobs.ClusterJob: partial(clusters.cluster, self),
            jobs.ProjectJob: partial(clusters.project, self),
            jobs.AssignJob: partial(clusters.assign, self),
            jobs.AnnotateJob: partial(labelling.annotate, self),
            jobs.SpreadJob: partial(labelling.spread, self),
            jobs.ReferenceJob: partial(watched.write_reference, self),
            jobs.DiagnoseJob: partial(diagnose, self),
        }

    def answer(self, job: Job) -> Answer | Failure:
        """The answer to a job, or a Failure with its reason: a site that fails never ends a round."""
        try:
            return self._handlers[type(job)](job)
        except Exception as error:  # the boundary: whatever went wrong here is a value over there
            return self.failure(error)

    def failure(self, error: Exception) -> Failure:
        """What the others may know of an error. Only our own messages are free of rows: a database's quotes them."""
        if isinstance(error, FedloopError):
            return Failure(f"{self.name}: {error}")
        LOG.error("%s could not answer", self.name, exc_info=error)
        return Failure(f"{self.name}: {type(error).__name__} (the site's own log says more)")

    # -- rows -------------------------------------------------------------------------------------------------

    def _load_images(self, snapshots: tuple[str, ...], split: str) -> tuple[pd.DataFrame, Images]:
        rows = self.store.rows(snapshots, "train" if split == "train" else "evaluation")
        return rows, stack_images(rows["png"], self.task.input)

    def _load_training(
        self, labellings: tuple[str, ...], snapshots: tuple[str, ...], fresh: tuple[str, ...]
    ) -> LabelledRows:
        rows, images = self.images(snapshots, "train")
        old = ~rows["snapshot"].isin(fresh).to_numpy()
        sensor = fit_sensor(images[old], images[~old], draw_seed("sensor", self.name)) if fresh else None
        # A site that had no new rows when labels were bought has no part in that labelling.
        own_part = [labelling for labelling in labellings if self.store.has_labels(labelling)] or labellings[:1]
        # What was said again counts before what was bought, that before what was spread, the newest of each.
        tables = pd.concat([self.store.labels(labelling) for labelling in reversed(own_part)])
        labels = tables.sort_values("how", kind="stable").drop_duplicates("row_id").set_index("row_id")
        labels = labels[labels["weight"] > 0]
        position = np.flatnonzero(rows["row_id"].isin(labels.index).to_numpy())
        own = labels.loc[rows["row_id"].iloc[position]]
        # New rows that no label has been bought for yet make no epoch longer.
        among = int(rows["snapshot"].isin(rows["snapshot"].iloc[position]).sum())
        return LabelledRows(
            images[position],
            torch.tensor(own["label"].to_numpy(), dtype=torch.int64),
            torch.tensor(own["weight"].to_numpy(), dtype=torch.float32),
            torch.from_numpy(old[position]),
            sensor,
            among,
        )

    # -- training ---------------------------------------------------------------------------------------------

    def draw_steps(self, job: jobs.TrainJob) -> Steps:
        """The batches of one round; they depend on the seed, the round and the site alone."""
        rows = self.labelled_rows(job.labellings, job.snapshots, job.fresh)
        return site_steps(rows, job.work, draw_seed(job.seed, job.round, self.name), self.task.augment)

    def seat(self, job: jobs.TrainJob, layout: Layout) -> Seats:
        """The site as rules and stages see it, with what it kept from the run's earlier rounds."""
        names = memory_names(job.rule, job.stages)
        kept = self.store.recall(job.run, job.round, job.abandoned) if names else {}
        seeds = seeds_of(draw_seed("stages", job.seed, job.round, self.name), np.zeros(1, dtype=np.int64))
        return Seats(layout, seeds, {name: kept.get(name, torch.zeros(1, layout.size)) for name in names})

    def train(self, job: jobs.TrainJob) -> jobs.TrainAnswer:
        layout = Layout.of(job.parameters)
        kernel, steps, seats = plain(self.task.build_model(), layout), self.draw_steps(job), self.seat(job, layout)
        start = layout.flatten(job.parameters)
        sent, losses = local_updates(kernel, steps, start, job.shared, job.work, job.rule, job.stages, seats)
        return self.report(job, steps, sent, losses, seats)

    def report(
        self, job: jobs.TrainJob, steps: Steps, sent: torch.Tensor, losses: torch.Tensor, seats: Seats
    ) -> jobs.TrainAnswer:
        """The answer to a training job whose work is done; only now the site keeps what the work left it."""
        # An update that is not finite is not taken, and what came with it would spoil every later round here.
        if seats.memory and all(bool(kept.isfinite().all()) for kept in (sent, *seats.memory.values())):
            self.store.remember(job.run, job.round, seats.memory, job.abandoned)
        weight = 1.0 if job.rule.uniform else float(steps.examples[0])
        return jobs.TrainAnswer(
            sent[0].clone(), float(steps.examples[0]), weight if steps.examples[0] > 0 else 0.0, float(losses[0])
        )

    # -- evaluation -------------------------------------------------------------------------------------------

    def evaluate(self, job: jobs.EvaluateJob) -> jobs.EvaluateAnswer:
        rows, images = self.images(job.snapshots, "evaluation")
        truth = self.store.truth(rows["row_id"])
        known = truth.notna().to_numpy()
        rows, images, labels = rows[known], images[known], truth[known].to_numpy(dtype=np.int64)
        weights = replicate_weights(job.replicates, len(labels), draw_seed(job.seed, self.name))
        all_probabilities = [class_probabilities(self.task, parameters, images) for parameters in job.models]
        scores = [score_model(p, labels, weights, self.task.metric == "auc") for p in all_probabilities]
        correct = np.stack([p.argmax(1) == labels for p in all_probabilities])
        slices = {
            column: slice_counts(rows[column].to_numpy(), edges, correct) for column, edges in job.slice_edges.items()
        }
        return jobs.EvaluateAnswer(len(labels), tuple(scores), slices, weights.sum(axis=1))

    def describe(self, job: jobs.DescribeJob) -> jobs.DescribeAnswer:
        if job.watch is not None:
            return watched.count_watched(self, job.watch)
        rows, _ = self.images(job.snapshots, job.split)
        histograms = {
            column: np.histogram(rows[column].to_numpy(), bins=job.bins, range=(0.0, 1.0))[0].astype(np.int64)
            for column in QUALITY_COLUMNS
        }
        return jobs.DescribeAnswer(len(rows), histograms)


def sites_of(task: Task, folder: Mapping[str, SiteStore], annotator: Annotator | None = None) -> dict[str, Site]:
    """A Site over each store, by name."""
    return {name: Site(task, store, annotator) for name, store in folder.items()}
