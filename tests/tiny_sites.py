"""A tiny image task (three patterns, a linear model) and sites with rows of it, so that federated tests take
milliseconds. Rows come from the real ingest, labels from the real store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from models.images import ImageInput, Images
from models.task import Rows, Task, TaskData
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Parameters
from pipelines.federated.site import OracleAnnotator, Site
from pipelines.federated.store import SiteStore
from pipelines.ingest import ingest

CLASSES = 3
LABELLING = "everything"


def linear_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


def no_data() -> TaskData:
    raise AssertionError("the tests bring their own rows")


TINY = Task(
    name="tiny",
    input=ImageInput(channels=1, height=8, width=8),
    classes=("bars", "stripes", "corner"),
    load=no_data,
    build_model=linear_model,
)
TINY_AUC = Task(
    name="tiny-auc",
    input=TINY.input,
    classes=("bars", "stripes"),
    load=no_data,
    build_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
    metric="auc",
)


def pictures(labels: NDArray[np.int64], seed: int, noise: float = 25.0) -> Images:
    """uint8 [n, 8, 8, 1]: one pattern a class under Gaussian noise; no two alike."""
    rng = np.random.default_rng(seed)
    patterns = np.zeros((CLASSES, 8, 8))
    patterns[0, :, ::2] = 180
    patterns[1, ::2, :] = 180
    patterns[2, :4, :4] = 200
    seen = patterns[labels] + 30 + rng.normal(0, noise, size=(len(labels), 8, 8))
    return np.clip(seen, 0, 255).astype(np.uint8)[..., None]


def rows_of(count: int, seed: int, classes: int = CLASSES) -> Rows:
    labels = np.arange(count, dtype=np.int64) % classes
    return Rows(list(pictures(labels, seed)), [int(label) for label in labels])


def initial(seed: int = 0, task: Task = TINY) -> Parameters:
    torch.manual_seed(seed)
    return {name: p.detach().clone() for name, p in task.build_model().named_parameters()}


def make_site(
    root: Path, name: str, train: int, evaluation: int = 0, seed: int = 0, task: Task = TINY
) -> tuple[Site, tuple[str, ...], tuple[str, ...]]:
    """A site with that many rows, all of them labelled under LABELLING, and the ids of its snapshots of each split."""
    store = SiteStore(root / name)
    classes = len(task.classes)
    ids = {}
    for split, count, shift in (("train", train, 0), ("evaluation", evaluation, 500)):
        part = "train" if split == "train" else "evaluation"
        source = rows_of(count, 1000 * seed + shift + 1, classes)
        ids[split] = ingest(store, task, source, part, split).snapshots if count else ()
    rows = store.rows(ids["train"], "train")
    if len(rows):
        labels = store.truth(rows["row_id"]).to_numpy(dtype=np.int64)
        table = pd.DataFrame({"row_id": rows["row_id"], "label": labels, "weight": 1.0, "how": "bought"})
        store.write_labels(LABELLING, table)
    return Site(task, store, OracleAnnotator()), ids["train"], ids["evaluation"]


def make_engine(
    root: Path, sizes: Mapping[str, int], stacked: bool | None = None, task: Task = TINY
) -> tuple[LocalEngine, dict[str, tuple[str, ...]]]:
    """An engine over sites of those sizes and their training snapshots."""
    made = {name: make_site(root, name, size, seed=i, task=task) for i, (name, size) in enumerate(sizes.items())}
    return LocalEngine({name: s for name, (s, _, _) in made.items()}, stacked), {n: t for n, (_, t, _) in made.items()}
