"""Streams in which the world changes: pictures that get dark, and two tables in the order in which they were recorded.

A world is a first set of rows at several sites, and windows of traffic with what a serving model is measured on. Of
digits and retina, traffic is drawn from one pool, and the model is measured on another that no training ever sees, in
the same light. The tables bring their own rows: a window is measured before anything is learned from it.

A task of fedloop learns from pictures. So a row of a table becomes one, a grey pixel for each column (the inverse
hyperbolic sine of its distance from the first rows' median, in 8 bits), and passes the whole loop unchanged: stores,
clusters, bought and spread labels, federated training, gate, registry, monitor. What the monitor then watches are
statistics over a row's columns (their mean, their spread), its distance to the data summary, and the model's answers:
not one column after the other, as a monitor of tables would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from models.images import ImageInput, Images, encode_png
from models.small_cnn import Standardise
from models.task import Rows, Task, TaskData
from pipelines import gather
from pipelines.federated.store import SiteStore, stack_images
from pipelines.gather import Material
from pipelines.ingest import ingest
from pipelines.replay import Capture, captures
from pipelines.settings import Settings, load_settings

Labels = NDArray[np.int64]

PERIOD_S = 4 * 3600.0
"""From one window to the next: the alarm's cool-down and its decisions a day are counted in the stream's time."""
SENT_WITHIN_S = 3000.0
SITES = 5
HELD_OUT = 0.2


@dataclass(frozen=True)
class Window:
    """traffic: what the sites send; images, labels: what whoever serves then is measured on."""

    traffic: list[Capture]
    images: Images
    labels: Labels


@dataclass(frozen=True)
class World:
    """settings: of the loop; first: of the training before the stream; ends_at: by window, its end in stream time."""

    settings: Settings
    first: Settings
    material: Callable[[], Material]
    windows: list[Window]
    ends_at: list[float]


# -- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Light:
    """steps: windows that it takes to go out, 1 is abrupt; where: at the first site or at all."""

    task: str
    steps: int
    where: Literal["one", "all"]

    def lost(self, window: int, begins: int) -> float:
        """The share of the light that is gone in a window."""
        return LOST * min(max(window - begins + 1, 0) / self.steps, 1.0)


LOST, BEGINS = 0.7, 5
WINDOWS: Mapping[str, int] = {"digits": 24, "retina": 16}
GRADUAL = 6
SENT, MEASURED = 150, 400
MOST_LABELS = 22
"""What one retraining may cost, whoever asks for it: the share of one window's rows is less, but for elec2's."""


def pictures(light: Light, quick: bool) -> World:
    short = {"rounds": 12, "adapt_rounds": 2, "retrain_rounds": 3} if quick else TRAINING[light.task]
    settings = _settings(
        light.task, training=short, drift={"window_rows": SENT}, retrain={"minimum_new_rows": 2 * SENT}
    )
    task, data, plan = settings.task, settings.task.load(), gather.site_plan(settings)
    drift, begins = next(iter(task.corruptions.values())), 2 if quick else BEGINS
    sites = sorted(plan.cameras)[:1] if light.where == "one" else None
    windows = []
    for number in range(6 if quick else WINDOWS[light.task]):
        lost = light.lost(number, begins)
        take = partial(
            captures, task, cameras=plan.cameras, label_mix=plan.label_mix, seed=settings.seed,
            corruption=drift if lost else None, severity=lost, sites=sites,
        )  # fmt: skip
        shown = take(data.probe, count=MEASURED, tag=f"measured-{number}")
        images = stack_images((shot.png for shot in shown), task.input)
        traffic = take(data.live, count=settings.drift.window_rows, tag=f"traffic-{number}")
        windows.append(Window(traffic, images, np.array([shot.label for shot in shown])))
    return _world(settings, settings, partial(gather.gather, settings), windows)


# -- tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """x: float [n, columns] in time order; y: [n]; first: so many rows are there before the stream.

    measured: rows of a window, all of which measure; every `sent`th of them is traffic.
    """

    x: NDArray[np.float64]
    y: Labels
    first: int
    measured: int
    sent: int = 1


def gas_drift() -> Table:
    """Eight batches over 36 months. Within a batch the file is ordered by gas and not by time, so it is shuffled."""
    frame = pd.read_parquet(_data("gas_drift/gas_drift_8of10.parquet"))
    order = np.random.default_rng(0).permutation(len(frame))
    frame = frame.iloc[order].sort_values("batch", kind="stable")
    x = frame[[f"f{number}" for number in range(1, 129)]].to_numpy(dtype=np.float64)
    return Table(x, frame["gas"].to_numpy(dtype=np.int64) - 1, int((frame["batch"] == 1).sum()), 250)


def elec2() -> Table:
    """A market's half-hours: eight weeks are known, then windows of six weeks. The date is no column.

    Every fourth half-hour is traffic, for the benchmark's time; all of them measure.
    """
    frame = pd.read_parquet(_data("elec2/elec2.parquet"))
    columns = ["day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer"]
    x = frame[[*columns, "nswprice", "nswdemand"]].to_numpy(dtype=np.float64)  # nine pixels make a square
    return Table(x, (frame["class"] == "UP").to_numpy(dtype=np.int64), 8 * 336, 6 * 336, sent=4)


def _data(name: str) -> Path:
    return Path(os.environ.get("FEDLOOP_DATA", "/nowhere")) / name


def _no_rows() -> TaskData:
    raise AssertionError("the world brings its own rows")


def _dense(columns: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), Standardise(0.5, 0.125), nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, classes)
    )


GAS = Task(
    "gas_drift", ImageInput(channels=1, height=8, width=16),
    ("ethanol", "ethylene", "ammonia", "acetaldehyde", "acetone", "toluene"), _no_rows, partial(_dense, 128, 6),
)  # fmt: skip
ELEC2 = Task(
    "elec2", ImageInput(channels=1, height=3, width=3), ("down", "up"), _no_rows, partial(_dense, 9, 2),
)  # fmt: skip
TABLES: Mapping[str, Callable[[], Table]] = {"GAS": gas_drift, "ELEC2": elec2}


def as_images(x: NDArray[np.float64], first: int, task: Task) -> Images:
    """uint8 [n, height, width, 1] of x [n, columns]; the scale is that of the first rows."""
    middle, spread = np.median(x[:first], axis=0), np.maximum(x[:first].std(axis=0), 0.01)
    levels = 128.0 + 127.0 * np.arcsinh((x - middle) / spread) / np.arcsinh(20.0)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).reshape(len(x), *task.input.shape)


def table(name: str, quick: bool) -> World:
    made = TABLES[name]()
    settings = _settings(
        f"{__name__}:{name}", drift={"window_rows": made.measured // made.sent}, training=TRAINING["tables"]
    )
    # A history is labelled as a rule; the stream's rows are not.
    labels = settings.labels.model_copy(update={"budget_share": 0.5, "per_cluster": 10})
    first = settings.model_copy(update={"labels": labels})
    images, where = as_images(made.x, made.first, settings.task), np.arange(len(made.x)) // made.sent % SITES
    windows = []
    for number in range((len(made.x) - made.first) // made.measured):
        start = made.first + number * made.measured
        rows = slice(start, start + made.measured)
        traffic = [
            Capture(f"site-{where[i] + 1}", encode_png(images[i]), int(made.y[i]), f"row-{i}", 0.0)
            for i in range(rows.start, rows.stop, made.sent)
        ]
        windows.append(Window(traffic, images[rows], made.y[rows]))
    return _world(settings, first, partial(_ingested, settings, made, images, where), windows[: 6 if quick else None])


def _ingested(settings: Settings, made: Table, images: Images, where: Labels) -> Material:
    """The first rows at their sites, as `gather` would bring a task's own."""
    judged = np.random.default_rng(1).random(made.first) < HELD_OUT
    found: dict[str, dict[str, tuple[str, ...]]] = {"train": {}, "evaluation": {}}
    rows = 0
    for site in range(SITES):
        store = SiteStore(settings.folder / "sites" / f"site-{site + 1}")
        for split, part in (("train", ~judged), ("evaluation", judged)):
            own = np.flatnonzero(part & (where[: made.first] == site))
            kind: Any = split
            done = ingest(store, settings.task, Rows(list(images[own]), made.y[own].tolist()), kind, "history")
            found[split][store.site] = done.snapshots
            rows += done.new_rows if split == "train" else 0
    return Material(found["train"], found["evaluation"], found["train"], {}, {}, (), None, rows, 0, False)


# -- both -------------------------------------------------------------------------------------------------------

TRAINING: Mapping[str, dict[str, Any]] = {
    # The defaults, but for fewer rounds after the first training: every strategy retrains in this way.
    "digits": {"adapt_rounds": 2, "retrain_rounds": 4, "batch_size": 20},
    "retina": {"adapt_rounds": 2, "retrain_rounds": 3},
    "tables": {"rounds": 100, "adapt_rounds": 2, "retrain_rounds": 6, "batch_size": 20, "learning_rate": 0.06},
}
RECIPE = (LOST, BEGINS, WINDOWS, GRADUAL, SENT, MEASURED, MOST_LABELS, TRAINING)
"""What the worlds are made of: figures of another recipe are no figures of these."""
STREAMS: Mapping[str, Callable[[bool], World]] = {
    **{
        f"{task}_{how}_{where}": partial(pictures, Light(task, steps, where))
        for task in ("digits", "retina")
        for how, steps in (("abrupt", 1), ("gradual", GRADUAL))
        for where in ("all", "one")
    },
    "gas_drift": partial(table, "GAS"),
    "elec2": partial(table, "ELEC2"),
}


def _settings(task_name: str, **overrides: Any) -> Settings:
    # What passes the gate serves from the next window on: the steps of a release would take the stream's time.
    settings = load_settings(task_name, **overrides, labels={"most": MOST_LABELS}, release={"steps": False})
    settings.apply_environment()
    return settings


def _world(settings: Settings, first: Settings, material: Callable[[], Material], windows: list[Window]) -> World:
    """The windows in stream time, of which the last has just ended."""
    ends = [time.time() - 600.0 - PERIOD_S * (len(windows) - 1 - number) for number in range(len(windows))]
    timed = [
        replace(
            window,
            traffic=[
                replace(shot, at=end - SENT_WITHIN_S * (1.0 - place / len(window.traffic)))
                for place, shot in enumerate(window.traffic)
            ],
        )
        for window, end in zip(windows, ends, strict=True)
    ]
    return World(settings, first, material, timed, ends)
