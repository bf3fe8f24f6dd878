"""Worlds to label in: real rows dealt to skewed sites with real stores, a test set, and one way to train.

Everything that chooses labels is given the same rows and the same model, trained in one place on the rows that were
labelled: what differs is the labels alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from models.augment import shifts
from models.draws import draw_seed
from models.images import ImageInput, Images, encode_png, to_tensor
from models.small_cnn import small_cnn
from models.task import Rows, Task, TaskData, find_task
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Parameters
from pipelines.federated.kernels.plain import plain
from pipelines.federated.layout import Layout, drawn_model, parameters_of
from pipelines.federated.local_work import LabelledRows, site_steps
from pipelines.federated.site import sites_of
from pipelines.federated.store import SiteStore
from pipelines.federated.work import LocalWork
from pipelines.ingest import ingest
from pipelines.summarize import Snapshots


@dataclass(frozen=True)
class Recipe:
    """rows: of the pool, 0 all. alpha: of the Dirichlet over sites, for each class. updates: steps of 32 rows."""

    data: str
    rows: int
    sites: int
    alpha: float
    updates: int
    learning_rate: float


RECIPES = {
    "digits": Recipe("digits", 0, 5, 0.3, 500, 0.05),
    "retina": Recipe("retina", 0, 5, 0.3, 300, 0.01),
    # 3,000 of the 60,000: TypiClust's k-means in as many clusters as labels, and ProbCover's pairs, cost their square.
    "mnist": Recipe("mnist", 3_000, 20, 0.1, 300, 0.05),
    "mnist-60000": Recipe("mnist", 0, 20, 0.1, 600, 0.05),
}


@dataclass(frozen=True)
class World:
    """images, labels: of all rows, in the order of `row_ids`; test_*: what no choice was made on."""

    recipe: Recipe
    task: Task
    root: Path
    snapshots: Snapshots
    row_ids: list[str]
    images: Images
    labels: NDArray[np.int64]
    test_images: Images
    test_labels: NDArray[np.int64]

    @contextmanager
    def engine(self) -> Iterator[LocalEngine]:
        """The sites as they are before any label was bought."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(self.root, folder, dirs_exist_ok=True)
            yield LocalEngine(sites_of(self.task, {name: SiteStore(Path(folder) / name) for name in self.snapshots}))


def no_rows() -> TaskData:
    raise AssertionError("the world brings its own rows")


MNIST = Task(
    "mnist",
    ImageInput(channels=1, height=28, width=28),
    tuple("0123456789"),
    no_rows,
    lambda: small_cnn(1, 10, mean=0.13, spread=0.31),
    augment=shifts(2),
)


@cache
def pools(data: str) -> tuple[Task, Images, NDArray[np.int64], Images, NDArray[np.int64]]:
    """Task, the rows to learn from and their labels, the rows to test on and theirs."""
    if data == "mnist":
        from models import mnist

        found = mnist.load()
        some = np.random.default_rng(0).permutation(10_000)[:4_000]
        test_x, test_y = found.test_x.numpy()[some], found.test_y.numpy()[some]
        return MNIST, found.x.transpose(0, 2, 3, 1), found.y, test_x.transpose(0, 2, 3, 1), test_y
    task = find_task(data)
    loaded = task.load()
    test = (loaded.probe, loaded.evaluation) if data == "digits" else (loaded.probe,)
    return task, *_stacked(loaded.development), *_stacked(*test)


def _stacked(*pools: Rows) -> tuple[Images, NDArray[np.int64]]:
    images = np.stack([np.asarray(image) for pool in pools for image in pool.images])
    return images, np.array([label for pool in pools for label in pool.labels], dtype=np.int64)


def dealt(labels: NDArray[np.int64], sites: int, alpha: float, seed: int) -> NDArray[np.int64]:
    """[n]: whose each row is, every class over the sites by a Dirichlet (Hsu et al., 2019)."""
    rng = np.random.default_rng([seed, 7])
    shares = rng.dirichlet(np.full(sites, alpha), size=int(labels.max()) + 1).cumsum(axis=1)
    return np.minimum((rng.random(len(labels))[:, None] > shares[labels]).sum(axis=1), sites - 1)


def build(recipe: Recipe, seed: int, root: Path) -> World:
    """The world of a recipe and seed, with its sites' stores under `root`."""
    task, images, labels, test_images, test_labels = pools(recipe.data)
    if recipe.rows:
        taken = np.random.default_rng([seed, 6]).permutation(len(labels))[: recipe.rows]
        images, labels = images[taken], labels[taken]
    owner = dealt(labels, recipe.sites, recipe.alpha, seed)
    snapshots, row_ids, order = {}, [], []
    for site in range(recipe.sites):
        own = np.flatnonzero(owner == site)
        if not len(own):
            continue
        store = SiteStore(root / f"site-{site:02d}")
        pngs = [encode_png(image) for image in images[own]]
        snapshots[store.site] = ingest(
            store, task, Rows(pngs, [int(y) for y in labels[own]]), "train", recipe.data
        ).snapshots
        table = store.rows(snapshots[store.site], "train")
        place = {png: int(i) for png, i in zip(pngs, own, strict=True)}
        row_ids += table["row_id"].tolist()
        order += [place[png] for png in table["png"]]
    return World(recipe, task, root, snapshots, row_ids, images[order], labels[order], test_images, test_labels)


def train(
    world: World, rows: NDArray[np.int64], labels: NDArray[np.int64], weights: NDArray[np.float64], seed: int
) -> Parameters:
    """The task's model after the recipe's steps on these rows, the learning rate falling in three stairs."""
    start = parameters_of(drawn_model(world.task, seed))
    layout = Layout.of(start)
    kernel, vector = plain(world.task.build_model(), layout), layout.flatten(start)
    learn = LabelledRows(world.images[rows], torch.from_numpy(labels), torch.from_numpy(weights).float())
    for stair, (share, rate) in enumerate(((0.6, 1.0), (0.25, 0.3), (0.15, 0.1))):
        work = LocalWork(
            batch_size=min(32, len(rows)),
            learning_rate=rate * world.recipe.learning_rate,
            momentum=0.9,
            weight_decay=1e-3,
            clip_norm=2.0,
            updates=int(share * world.recipe.updates),
        )
        deltas, _ = kernel(vector, site_steps(learn, work, draw_seed("bench", seed, stair), world.task.augment), work)
        vector = vector + deltas[0]
    return layout.unflatten(vector)


def score(world: World, parameters: Parameters) -> dict[str, float]:
    """accuracy, and for tasks whose metric it is auc, on the test rows."""
    from sklearn.metrics import roc_auc_score

    model = world.task.build_model().eval()
    with torch.no_grad():
        logits = torch.cat(
            [
                functional_call(model, parameters, (to_tensor(world.test_images[start : start + 500]),))
                for start in range(0, len(world.test_images), 500)
            ]
        )
    shares = torch.softmax(logits.double(), dim=1).numpy()
    found = {"accuracy": float((shares.argmax(axis=1) == world.test_labels).mean())}
    if world.task.metric == "auc":
        found["auc"] = float(roc_auc_score(world.test_labels, shares[:, 1]))
    return found
