"""Worlds in which the cause of an error is known, because it was put there; `diagnosis.py` says which and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.images import ImageInput, encode_png
from models.task import Rows, Task

Labels = NDArray[np.int64]
WORLDS = {"unseen": 2, "mislabelled": 2, "mislearned": 1, "unreadable": 1}
"""How many worlds of each kind a seed draws."""


SEVERITIES = (0.3, 0.5, 0.7, 0.9)
"""The named ones of low light; each dark picture draws one."""


@dataclass(frozen=True)
class Source:
    """Images uint8 [n, h, w, c] with their labels; the first `train` of a seed's order are learned from."""

    task: Task
    images: NDArray[np.uint8]
    labels: Labels
    train: int
    judged: int
    rounds: int
    learning_rate: float


def digits() -> Source:
    from sklearn.datasets import load_digits

    from models.digits import TASK

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255.0 / 16.0)).astype(np.uint8)
    return Source(TASK, images, labels.astype(np.int64), 1150, 647, 24, 0.1)


def mnist() -> Source:
    from models.mnist import load
    from models.small_cnn import small_cnn

    data = load()
    kept = np.random.default_rng(0).permutation(len(data.y))[:12_000]
    task = Task(
        "mnist-sites",
        ImageInput(1, 28, 28),
        tuple("0123456789"),
        lambda: (_ for _ in ()).throw(AssertionError("the benchmark deals the rows")),
        partial(small_cnn, 1, 10, 0.13, 0.31),
    )
    return Source(task, data.x[kept].transpose(0, 2, 3, 1), data.y[kept], 2000, 1000, 8, 0.08)


class World:
    """Five sites with stores, their rows and a labelling, a model trained on it, and whose errors have which cause."""

    def __init__(self, source: Source, seed: int, root: Path, rounds: int) -> None:
        from pipelines.federated.engines.local import LocalEngine
        from pipelines.federated.site import Site
        from pipelines.federated.store import SiteStore
        from pipelines.ingest import ingest
        from pipelines.partition import divide, plan_sites
        from pipelines.settings import SiteSettings

        self.source, self.seed, self.root, self.rounds = source, seed, root, rounds
        task = source.task
        order = np.random.default_rng([seed, 77]).permutation(len(source.labels))[: source.train + source.judged]
        plan = plan_sites(task, SiteSettings(), seed)
        self.by_class: dict[str, dict[int, tuple[str, ...]]] = {}
        self.evaluation, sites = {}, {}
        for split, index in (("train", order[: source.train]), ("evaluation", order[source.train :])):
            rows = Rows([source.images[i] for i in index], [int(source.labels[i]) for i in index])
            for name, own in divide(rows, plan, task, seed + len(split)).items():
                sites.setdefault(name, Site(task, SiteStore(root / name)))
                if split == "evaluation":
                    self.evaluation[name] = ingest(sites[name].store, task, own, "evaluation", split).snapshots
                    continue
                # A snapshot a class, so that a class can be left out as if nobody had ever seen it.
                for label in sorted(set(own.labels)):
                    part = own.take(np.flatnonzero(np.array(own.labels) == label))
                    done = ingest(sites[name].store, task, part, "train", f"{split} {label}")
                    self.by_class.setdefault(name, {})[int(label)] = done.snapshots
        self.without()
        self.engine = LocalEngine(sites)

    def without(self, left_out: int | None = None) -> None:
        """The sites' training rows, all or without a class."""
        self.train = {
            name: tuple(s for label, ids in own.items() if label != left_out for s in ids)
            for name, own in self.by_class.items()
        }

    def label(self, name: str, change: Callable[[pd.DataFrame, NDArray[np.float64]], pd.DataFrame]) -> None:
        """Write a labelling: everything as it is, but for what `change` makes of the rows and their pixels."""
        for site in self.engine.sites.values():
            rows, images = site.images(self.train[site.name], "train")
            truth = site.store.truth(rows["row_id"]).to_numpy(dtype=np.int64)
            table = pd.DataFrame({"row_id": rows["row_id"], "label": truth, "weight": 1.0, "how": "bought"})
            site.store.write_labels(name, change(table, flat(images)))

    def fit(self, labelling: str) -> dict:  # type: ignore[type-arg]
        from pipelines.federated.layout import drawn_model, parameters_of
        from pipelines.federated.plan import TrainingPlan
        from pipelines.federated.strategy import Strategy
        from pipelines.federated.training import train
        from pipelines.federated.work import LocalWork

        work = LocalWork(1, 20, self.source.learning_rate, 0.9, 1e-4)
        plan = TrainingPlan((labelling,), self.train, self.rounds, self.seed, Strategy(work), final_rate=0.1)
        start = parameters_of(drawn_model(self.source.task, self.seed))
        return train(plan, start, self.engine, self.root / "states" / labelling, every_s=1e9).parameters

    def found(
        self, labelling: str, parameters: dict, kind: str, true: Callable[[str, pd.DataFrame], NDArray[np.bool_]],
        cases: dict | None = None,
    ) -> pd.DataFrame:  # fmt: skip  # type: ignore[type-arg]
        """The causes that the sites found for the errors that `true` picks, by the jobs that a diagnosis asks with."""
        from pipelines.diagnose import Learned, jobs_of
        from pipelines.federated.causes import CAUSES
        from pipelines.federated.site_diagnosis import examine
        from pipelines.settings import DiagnosisSettings

        learned = Learned(self.train, self.evaluation, (labelling,))
        jobs = jobs_of(self.engine, learned, parameters, 1, DiagnosisSettings(), self.seed, cases or {})
        parts = []
        for name, job in jobs.items():
            examined = examine(self.engine.sites[name], job)
            errors, low = examined.errors, examined.calibration[:, 0]
            table = pd.DataFrame(
                {
                    "truth": errors.truth,
                    "prediction": errors.prediction,
                    "case": errors.judged < 0,
                    "cause": [CAUSES[c] for c in examined.found.cause],
                }
            )
            table["pixels"] = list(flat(errors.images))
            table["kind"] = np.where(true(name, table), kind, "ordinary")
            table["right"], table["false_unseen"], table["false_unreadable"] = examined.calibration[0].sum(), *low
            parts.append(table.drop(columns="pixels").assign(site=name))
        return pd.concat(parts, ignore_index=True).assign(seed=self.seed)


def flat(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1).astype(np.float64)


def worlds(source: Source, seed: int, rounds: int) -> Iterator[pd.DataFrame]:
    """Every world of a seed and what was found in it."""
    from sklearn.cluster import KMeans

    from models.camera import low_light
    from pipelines.federated.jobs import Case
    from pipelines.federated.scoring import class_probabilities

    with tempfile.TemporaryDirectory() as folder:
        world, rng = World(source, seed, Path(folder), rounds), np.random.default_rng([seed, 5])
        classes = rng.permutation(len(source.task.classes))
        for number in range(WORLDS["unseen"]):
            held, name = int(classes[number]), f"unseen-{number}"
            world.without(held)
            world.label(name, lambda table, _: table)
            weights = world.fit(name)
            yield world.found(name, weights, "unseen", lambda _, e, held=held: e["truth"].to_numpy() == held)
        world.without()
        rows = [site.images(world.train[site.name], "train")[1] for site in world.engine.sites.values()]
        pixels = np.concatenate([flat(images) for images in rows])
        truth = np.concatenate(
            [
                s.store.truth(s.images(world.train[s.name], "train")[0]["row_id"]).to_numpy(dtype=np.int64)
                for s in world.engine.sites.values()
            ]
        )
        clusters = KMeans(25, n_init=2, random_state=seed).fit(pixels)
        counts = np.zeros((25, len(source.task.classes)), dtype=np.int64)
        np.add.at(counts, (clusters.labels_, truth), 1)
        pure = np.flatnonzero((counts.max(axis=1) >= 0.9 * counts.sum(axis=1)) & (counts.sum(axis=1) >= 20))
        for number, cluster in enumerate(rng.permutation(pure)[: WORLDS["mislabelled"]]):
            was, name = int(counts[cluster].argmax()), f"mislabelled-{number}"
            said = int((was + rng.integers(1, len(source.task.classes))) % len(source.task.classes))

            def flip(table: pd.DataFrame, x: NDArray[np.float64], cluster: int, was: int, said: int) -> pd.DataFrame:
                hit = (clusters.predict(x) == cluster) & (table["label"] == was).to_numpy()
                return table.assign(label=np.where(hit, said, table["label"]))

            def flipped(_: str, e: pd.DataFrame, cluster: int, was: int, said: int) -> NDArray[np.bool_]:
                if not len(e):
                    return np.zeros(0, dtype=bool)
                inside = clusters.predict(np.stack(e["pixels"].to_list())) == cluster
                return inside & ((e["truth"] == was) & (e["prediction"] == said)).to_numpy()

            chosen = {"cluster": int(cluster), "was": was, "said": said}
            world.label(name, partial(flip, **chosen))
            yield world.found(name, world.fit(name), "mislabelled", partial(flipped, **chosen))
        for number in range(WORLDS["mislearned"]):
            light, name = int(classes[-1 - number]), f"mislearned-{number}"
            world.label(
                name, lambda t, _, light=light: t.assign(weight=np.where(t["label"] == light, 0.01, 1.0))
            )  # fmt: skip
            weights = world.fit(name)
            yield world.found(name, weights, "mislearned", lambda _, e, light=light: e["truth"].to_numpy() == light)
        world.label("clean", lambda table, _: table)
        weights, cases, noise = world.fit("clean"), {}, np.random.default_rng([seed, 6])
        for site in world.engine.sites.values():
            own, images = site.images(world.evaluation[site.name], "evaluation")
            labels = site.store.truth(own["row_id"]).to_numpy(dtype=np.int64)
            dark = np.concatenate([low_light(each[None], float(rng.choice(SEVERITIES)), noise) for each in images])
            known = class_probabilities(site.task, weights, images).argmax(axis=1) == labels
            chance = class_probabilities(site.task, weights, dark)
            wrong = known & (chance.argmax(axis=1) != labels)
            cases[site.name] = [
                Case(encode_png(dark[i]), int(labels[i]), int(chance[i].argmax()), float(chance[i].max()))
                for i in np.flatnonzero(wrong)
            ]
        yield world.found("clean", weights, "unreadable", lambda _, e: e["case"].to_numpy(), cases)
