"""A site's part in labelling: it chooses rows, has them labelled, and spreads what was bought to its other rows.

What leaves is how many labels of each class were bought in each cluster, and counts. Which row has which label, and
which are doubted, stays in the store. The other half is `pipelines/label.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from models.draws import draw_seed
from models.embedding import nearest_centroid
from pipelines.federated import jobs
from pipelines.federated.choosing import STRATEGIES, Pool
from pipelines.federated.doubts import Doubt, doubt, second_words
from pipelines.federated.jobs import Counts
from pipelines.federated.queue import Wanted, hand_over, rows_near
from pipelines.federated.scoring import class_probabilities
from pipelines.federated.spreading import Told, beliefs, held_out, suspects

if TYPE_CHECKING:
    from pipelines.federated.site import Site

PRESUMED = 3
"""Held-out labels that spreading is presumed to have got right: one or two mistakes are no evidence."""


def annotate(site: Site, job: jobs.AnnotateJob) -> jobs.AnnotateAnswer:
    row_ids, features = site.store.space(job.space)
    nearest, distance = nearest_centroid(features, job.centroids)
    known, away = nearest_centroid(features, job.known)
    # Kept by the site: people's labels are asked for every few seconds.
    rows, images = site.images(job.snapshots, "train")
    probabilities = None
    if job.parameters is not None:
        index = rows["row_id"].map({row: i for i, row in enumerate(row_ids)}).to_numpy()
        probabilities = np.zeros((len(row_ids), len(site.task.classes)))
        probabilities[index] = class_probabilities(site.task, job.parameters, images)
    strangeness = away / np.maximum(job.radius[known], 1e-9)
    seed = draw_seed(job.seed, site.name)
    pool = Pool(features, nearest, distance, strangeness, probabilities, len(site.task.classes), seed)
    chosen = STRATEGIES[job.strategy].choose(pool, job.quota)

    wanted = [Wanted(row_ids[i], int(nearest[i]), job.strategy, job.wants) for i in chosen]
    middle = rows_near(row_ids, nearest, distance, {each.cluster for each in wanted})
    new, pending = hand_over(site.store, site.annotator, wanted, rows.set_index("row_id")["png"], middle)

    labels = site.store.annotations()
    histogram = np.zeros((len(job.centroids), len(site.task.classes)), dtype=np.int64)
    for cluster, row in zip(nearest, row_ids, strict=True):
        if row in labels:
            histogram[cluster, labels[row]] += 1
    return jobs.AnnotateAnswer(histogram, sum(row_ids[i] in labels for i in chosen), new, pending)


def spread(site: Site, job: jobs.SpreadJob) -> jobs.SpreadAnswer:
    row_ids, features = site.store.space(job.space)
    paid = site.store.annotations()
    bought: Counts = np.array([paid.get(row, -1) for row in row_ids], dtype=np.int64)
    told = Told(features, bought, job.centroids.astype(np.float32), job.histogram, job.radius)
    label, confidence = bought.copy(), np.zeros(len(bought))
    checked = correct = 0
    doubted = np.zeros(0, dtype=np.int64)
    off = job.how == "none" or job.weight == 0
    if not off:
        expected = held_out(job.how, told, draw_seed(job.seed, site.name))
        tested = (bought >= 0) & (expected.max(axis=1, initial=0.0) >= job.confidence)
        checked, correct = int(tested.sum()), int((expected.argmax(axis=1) == bought)[tested].sum())
        doubted = suspects(bought, expected)
        chance, likelier = expected[doubted], expected[doubted].argmax(axis=1)
        support = chance[np.arange(len(doubted)), bought[doubted]].tolist()
        found = zip(doubted, likelier.tolist(), support, strict=True)
        doubt(site.store, "labelling", [Doubt(row_ids[i], int(bought[i]), other, share) for i, other, share in found])
        # A site that has little to judge by takes the others' word.
        off = (correct + PRESUMED) / (checked + PRESUMED) < job.check
    if not off:
        believed = beliefs(job.how, told)
        confidence = np.where(bought >= 0, 0.0, believed.max(axis=1, initial=0.0))
        label = np.where(bought >= 0, bought, believed.argmax(axis=1))
    reached = (confidence > 0) & (confidence >= job.confidence)
    keep = (bought >= 0) | reached
    table = pd.DataFrame(
        {
            "row_id": row_ids,
            "label": label,
            "weight": np.where(reached, job.weight * confidence, 1.0),
            "how": np.where(reached, "spread", "bought"),
        }
    )
    again = second_words(site.store)
    site.store.write_labels(job.labelling, pd.concat([table[keep], again], ignore_index=True))
    truth = site.store.truth(np.array(row_ids, dtype=object)[reached])
    known = truth.notna().to_numpy()
    return jobs.SpreadAnswer(
        bought=int((bought >= 0).sum()),
        spread=int(reached.sum()),
        unlabelled=int((~keep).sum()),
        spread_correct=int((truth[known].to_numpy(dtype=np.int64) == label[reached][known]).sum()),
        spread_known=int(known.sum()),
        checked=checked,
        check_correct=correct,
        off=off and job.how != "none",
        suspects=len(doubted),
    )
