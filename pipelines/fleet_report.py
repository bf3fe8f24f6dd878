"""A fleet's rounds as pictures: what became of the devices asked, when rounds happen, who takes part, what it costs.

Comes in: the rounds' figures (`Gathering.figures`), as a run's log keeps them. Comes out: one picture file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.errors import Missing
from pipelines.federated.fleet import Fleet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]

FATE_COLOURS = {
    "finished": ("reported", "#4c72b0"),
    "late": ("told to stop: the round was full or over", "#a9bcd8"),
    "dropped_configuration": ("dropped while downloading", "#ccb974"),
    "dropped_training": ("dropped while training", "#dd8452"),
    "dropped_reporting": ("dropped while uploading", "#c44e52"),
}
STEPS = 40
"""Bars into which a long run's rounds are put together."""


def plot_fleet(records: Records, fleet: Fleet, path: Path) -> Path:
    """Four pictures of a run's rounds in one file; records: figures of at least one round of this fleet."""
    if not records:
        raise Missing("there is no round to show; train on the fleet first")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.5), layout="constrained")
    axes = figure.subplots(2, 2)
    _sessions(axes[0, 0], records)
    _hours(axes[0, 1], records)
    _participation(axes[1, 0], records, fleet)
    _bytes(axes[1, 1], records)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def fairness(records: Records, fleet: Fleet) -> dict[str, dict[str, float]]:
    """Trait → kind → its share of the contributions by its share of the fleet: 1.0 is fair, 0.0 never trains."""
    ratios: dict[str, dict[str, float]] = {}
    for trait, shares in fleet.shares().items():
        counts = np.sum([record["participation"][trait] for record in records], axis=0)
        total = max(int(counts.sum()), 1)
        ratios[trait] = {
            kind: float(count / total / share) if share else float("nan")
            for (kind, share), count in zip(shares.items(), counts, strict=True)
        }
    return ratios


def _groups(records: Records) -> list[Records]:
    """The rounds in at most STEPS groups of neighbours."""
    edges = np.unique(np.linspace(0, len(records), min(STEPS, len(records)) + 1).astype(int)).tolist()
    return [records[start:end] for start, end in pairwise(edges)]


def _sessions(axis: Axes, records: Records) -> None:
    groups = _groups(records)
    left = [group[0]["round"] for group in groups]
    width = [group[-1]["round"] - group[0]["round"] + 1 for group in groups]
    counts = {
        fate: np.array([np.mean([r["sessions"][fate] for r in group]) for group in groups]) for fate in FATE_COLOURS
    }
    whole = np.maximum(sum(counts.values()), 1e-9)
    base = np.zeros(len(groups))
    for fate, (name, colour) in FATE_COLOURS.items():
        share = 100 * counts[fate] / whole
        mean = 100 * counts[fate].sum() / whole.sum()
        axis.bar(left, share, width, base, align="edge", color=colour, label=f"{name} ({mean:.1f}%)", lw=0)
        base = base + share
    abandoned = [record["round"] for record in records if record["abandoned"]]
    if abandoned:
        axis.plot(abandoned, np.full(len(abandoned), 102.0), "v", color="black", ms=4, label="round abandoned")
    axis.set(
        title="What became of the devices that were selected?",
        xlabel="round", ylabel="share of the sessions that ended (%)", ylim=(0, 105),
        xlim=(records[0]["round"], records[-1]["round"] + 1),
    )  # fmt: skip
    axis.legend(loc="lower left", fontsize=9)


def _hours(axis: Axes, records: Records) -> None:
    hour = np.array([record["started_s"] / 3600 % 24 for record in records])
    minutes = {
        "waiting for devices": ("#8172b3", [(r["selected_s"] - r["started_s"]) / 60 for r in records]),
        "training and reporting": ("#55a868", [(r["ended_s"] - r["selected_s"]) / 60 for r in records]),
    }
    for name, (colour, values) in minutes.items():
        taken = np.array(values)
        if taken.any():  # the asynchronous server does not wait
            axis.plot(
                hour, np.maximum(taken, 1e-2), ".", ms=5, alpha=0.6, color=colour, label=f"{name} (a dot a round)"
            )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(top=8 * axis.get_ylim()[1])  # room for the legend
    rounds, _ = np.histogram(hour, bins=24, range=(0, 24))
    behind = axis.twinx()
    behind.bar(np.arange(24) + 0.5, rounds, 1.0, color="black", alpha=0.08, lw=0)
    behind.set_ylabel("rounds that began in the hour (grey)")
    axis.set_zorder(behind.get_zorder() + 1)
    axis.patch.set_visible(False)
    axis.set(
        title="At what time of the day does the fleet train?",
        xlabel="hour of the virtual day in which the round began (UTC)", ylabel="duration (minutes)",
        xlim=(0, 24), xticks=range(0, 25, 3),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=9)


def _participation(axis: Axes, records: Records, fleet: Fleet) -> None:
    ratios = fairness(records, fleet)
    rows = [(trait, kind, ratio) for trait, kinds in ratios.items() for kind, ratio in kinds.items()]
    values: NDArray[np.float64] = np.nan_to_num(np.array([ratio for *_, ratio in rows]))
    names = [f"{trait}: {kind}" for trait, kind, _ in rows]
    traits = list(ratios)
    colours = [("#4c72b0", "#dd8452")[traits.index(trait) % 2] for trait, *_ in rows]
    place = np.arange(len(rows))
    axis.barh(place, values, color=colours, height=0.75)
    for y, value in zip(place.tolist(), values.tolist(), strict=True):
        axis.annotate(f" {value:.2f}" if value else " never", (value, y), va="center", fontsize=7)
    axis.axvline(1.0, color="black", lw=1, ls="--")
    axis.annotate(" as in the fleet", (1.0, -1.1), fontsize=8, va="center")
    axis.set_yticks(place, names, fontsize=7.5)
    axis.set(
        title="Whose data does the model see, and whose never?",
        xlabel="share of the contributions / share of the fleet", ylim=(len(rows) - 0.4, -1.6),
        xlim=(0, 1.12 * max(float(values.max()), 1.0)),
    )  # fmt: skip


def _bytes(axis: Axes, records: Records) -> None:
    rounds = [record["round"] for record in records]
    gigabytes = {
        "down to devices": ("#4c72b0", "-", np.cumsum([record["bytes_down"] for record in records]) / 1e9),
        "up from devices": ("#55a868", "-", np.cumsum([record["bytes_up"] for record in records]) / 1e9),
        "wasted: no model learned from it": ("#c44e52", "--", np.cumsum([r["bytes_wasted"] for r in records]) / 1e9),
    }
    for name, (colour, style, total) in gigabytes.items():
        axis.plot(rounds, total, style, color=colour, lw=1.8, label=f"{name}: {total[-1]:,.1f} GB")
    reports = sum(record["reports"] for record in records if not record["abandoned"])
    moved = sum(record["bytes_down"] + record["bytes_up"] for record in records) / 1e6
    axis.set(
        title=f"What does it cost the network? {moved / max(reports, 1):.2f} MB for each report that counted",
        xlabel="round", ylabel="traffic since the first round (GB)", ylim=(0, None),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
