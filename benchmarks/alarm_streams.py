"""Streams whose change is known: rows of four data sets as the monitor sees them, stable first, then drifted.

A split draws anew who trained the model, who made the reference and who is live traffic; no row is in two. Images are
seen by the cameras of three sites, each picture with a noise of its own; live scenes are drawn with replacement, and
rows of tables without, as long as they last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

SITES = ("site-1", "site-2", "site-3")
BREAK = 17_424  # the row of elec2 at which the market of Victoria joined
GAS_SENSORS = tuple(f"f{8 * sensor + 1}" for sensor in range(16))  # the steady state of each of the 16 sensors


@dataclass(frozen=True)
class Drift:
    """light: lost share; at: the sites it hits. shift: of `columns`, in standard deviations. classes: of so many times
    the usual share is the last class. real: what came next in the data set's own time.
    """

    light: float = 0.0
    at: tuple[str, ...] = SITES
    shift: float = 0.0
    columns: tuple[str, ...] = ()
    classes: float = 1.0
    real: bool = False


@dataclass(frozen=True)
class Split:
    """One drawing. reference: rows by site. begin: a run's traffic, which deals windows with a column `site`."""

    reference: Mapping[str, pd.DataFrame]
    begin: Callable[[np.random.Generator], Callable[[int, Drift], pd.DataFrame]]
    numeric: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    split: Callable[[int], Split]
    drifts: Mapping[str, Drift]


def _data(name: str) -> Path:
    return Path(os.environ.get("FEDLOOP_DATA", "/nowhere")) / name


def _told(model, x: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    probabilities = model.predict_proba(x)
    return {"confidence": probabilities.max(axis=1), "prediction": model.classes_[probabilities.argmax(axis=1)]}


@cache
def _pictures(name: str) -> tuple[np.ndarray, np.ndarray]:
    from models.digits import TASK
    from models.images import read_image

    if name == "digits":
        pools = TASK.load()
        rows = [pools.development, pools.evaluation, pools.live, pools.probe]
        images = np.stack([read_image(image, TASK.input) for pool in rows for image in pool.images])
        return images, np.array([label for pool in rows for label in pool.labels])
    found = np.load(_data("retinamnist") / "retinamnist.npz")
    images = np.concatenate([found[f"{part}_images"] for part in ("train", "val", "test")])
    grades = np.concatenate([found[f"{part}_labels"].ravel() for part in ("train", "val", "test")])
    return images, (grades >= 2).astype(np.int64)


@cache
def _images(name: str, seed: int) -> Split:
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression

    from models.camera import capture, draw_camera, low_light
    from models.digits import TASK as DIGITS
    from models.embedding import nearest_centroid
    from models.quality import quality
    from models.retina import TASK as RETINA
    from monitoring.drift import NUMERIC

    images, labels = _pictures(name)
    task = DIGITS if name == "digits" else RETINA
    rng = np.random.default_rng([seed, 1])
    cameras = {site: draw_camera(rng, images.shape[-1]) for site in SITES}
    train, reference, live = np.array_split(rng.permutation(len(images)), 3)

    def seen(index: np.ndarray, site: np.ndarray, source: np.random.Generator) -> np.ndarray:
        out = images[index].copy()
        for each, camera in cameras.items():
            if (here := site == each).any():
                out[here] = capture(camera, out[here], source)
        return out

    def flat(x: np.ndarray) -> np.ndarray:
        return np.asarray(x.reshape(len(x), -1)[:, :: max(1, x[0].size // 800)] / 255.0)

    trained = seen(train, rng.choice(SITES, len(train)), rng)
    model = LogisticRegression(C=0.3 if name == "digits" else 0.01, max_iter=200).fit(flat(trained), labels[train])
    centroids = KMeans(30, n_init=1, random_state=seed).fit(task.embed(trained)).cluster_centers_

    def columns(pictures: np.ndarray) -> pd.DataFrame:
        distance = nearest_centroid(task.embed(pictures), centroids)[1]
        return quality(pictures).assign(embedding_distance=distance, **_told(model, flat(pictures)))

    where = rng.choice(SITES, len(reference))
    table = columns(seen(reference, where, rng))

    def begin(source: np.random.Generator) -> Callable[[int, Drift], pd.DataFrame]:
        def draw(rows: int, drift: Drift) -> pd.DataFrame:
            chances = np.where(labels[live] == labels.max(), drift.classes, 1.0)
            index, site = source.choice(live, rows, p=chances / chances.sum()), source.choice(SITES, rows)
            pictures = seen(index, site, source)
            if drift.light and (hit := np.isin(site, drift.at)).any():
                pictures[hit] = low_light(pictures[hit], drift.light, source)
            return columns(pictures).assign(site=site)

        return draw

    parts = {site: table[where == site].reset_index(drop=True) for site in SITES}
    return Split(parts, begin, NUMERIC)


def _table(
    frame: pd.DataFrame, later: pd.DataFrame, numeric: tuple[str, ...], sizes: tuple[int, int], seed: int
) -> Split:
    """frame: stable rows with `label`, shuffled here; later: what came next in time, in its order."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng([seed, 2])
    frame = frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
    train, reference, live = np.split(frame.index.to_numpy(), np.cumsum(sizes))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(frame.loc[train, list(numeric)].to_numpy(), frame.loc[train, "label"])
    spread = frame.loc[reference, list(numeric)].std()

    def columns(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[list(numeric)].assign(**_told(model, rows[list(numeric)].to_numpy())).reset_index(drop=True)

    def begin(source: np.random.Generator) -> Callable[[int, Drift], pd.DataFrame]:
        left: list[int] = []
        since = 0  # rows of what came next that have been dealt

        def draw(rows: int, drift: Drift) -> pd.DataFrame:
            nonlocal since
            if drift.real:
                part = later.iloc[np.arange(since, since + rows) % len(later)]
                since += rows
            elif drift.classes != 1.0:
                label = frame.loc[live, "label"]
                chances = np.where(label == sorted(label.unique())[-1], drift.classes, 1.0)
                part = frame.loc[source.choice(live, rows, p=chances / chances.sum())].copy()
            else:
                while len(left) < rows:  # a small pool is dealt again, in another order
                    left.extend(int(row) for row in source.permutation(live))
                part = frame.loc[left[:rows]].copy()
                del left[:rows]
            for name in drift.columns:
                part[name] = part[name] + drift.shift * spread[name]
            return columns(part).assign(site="all")

        return draw

    return Split({"all": columns(frame.loc[reference])}, begin, numeric)


@cache
def _elec2(seed: int) -> Split:
    frame = pd.read_parquet(_data("elec2") / "elec2.parquet").rename(columns={"class": "label"})
    numeric = ("nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
    return _table(frame[:BREAK], frame[BREAK:], numeric, (2_000, 2_000), seed)


@cache
def _gas(seed: int) -> Split:
    frame = pd.read_parquet(_data("gas_drift") / "gas_drift_8of10.parquet").rename(columns={"gas": "label"})
    first, second = (frame[frame["batch"] == number] for number in (1, 2))
    return _table(first, second.sample(frac=1.0, random_state=seed), GAS_SENSORS, (145, 150), seed)


STREAMS: Mapping[str, Stream] = {
    "digits": Stream(
        lambda seed: _images("digits", seed),
        {
            "light-0.02": Drift(light=0.02),
            "light-0.1": Drift(light=0.1),
            "one-site-light-0.1": Drift(light=0.1, at=SITES[:1]),
            "class-x2": Drift(classes=2.0),
            "class-x4": Drift(classes=4.0),
        },
    ),
    "elec2": Stream(
        _elec2,
        {
            "demand+0.2sd": Drift(shift=0.2, columns=("nswdemand",)),
            "demand+0.3sd": Drift(shift=0.3, columns=("nswdemand",)),
            "demand+0.5sd": Drift(shift=0.5, columns=("nswdemand",)),
            "up-x2": Drift(classes=2.0),
            "break": Drift(real=True),
        },
    ),
    "gas": Stream(
        _gas,
        {
            "one-sensor+0.5sd": Drift(shift=0.5, columns=GAS_SENSORS[:1]),
            "all-sensors+0.3sd": Drift(shift=0.3, columns=GAS_SENSORS),
            "batch-2": Drift(real=True),
        },
    ),
    "retina": Stream(
        lambda seed: _images("retina", seed),
        {
            "light-0.1": Drift(light=0.1),
            "one-site-light-0.3": Drift(light=0.3, at=SITES[:1]),
            "class-x4": Drift(classes=4.0),
        },
    ),
}
