"""What a rehearsal has to show: figures from the traffic log, a table, `summary.json`, and a picture over time.

Every accuracy here is computed from what the log says was answered, joined with what the replay knows to be true, so
the report also shows that the log is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Column, Table

from models.scores import mean_auc
from models.task import Task
from pipelines.federated.files import write_atomically


@dataclass
class Moments:
    """When things happened, in seconds since the epoch; the picture marks them."""

    drift: float = 0.0
    alarm: float = 0.0
    retrain: float = 0.0
    retrained: float = 0.0
    swap: float = 0.0


@dataclass
class Summary:
    """The figures of one rehearsal, in groups; `summary.json` has exactly these."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    def put(self, group: str, **figures: Any) -> None:
        self.values.setdefault(group, {}).update(figures)

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps(_plain(self.values), indent=2).encode() + b"\n")


def quality_of(answers: pd.DataFrame) -> dict[str, float]:
    """accuracy and auc (two classes: of class 1; more: macro one-against-rest) of logged answers with their `truth`."""
    if answers.empty:
        return {"accuracy": float("nan"), "auc": float("nan")}
    truth = answers["truth"].to_numpy(dtype=np.int64)
    probabilities = np.array(answers["probabilities"].tolist(), dtype=np.float64)
    accuracy = float((answers["prediction"].to_numpy(dtype=np.int64) == truth).mean())
    return {"accuracy": accuracy, "auc": mean_auc(probabilities, truth)}


def table(summary: Summary, task: Task, title: str) -> Table:
    """The summary as a table to read."""
    values = summary.values
    shown = Table(Column(style="bold"), "", title=title, title_justify="left", show_header=False, min_width=78)
    for metric in ("accuracy", "auc"):
        v = values[metric]
        line = f"before {v['before']:.3f}   during {v['during']:.3f}   [bold]after {v['after']:.3f}[/bold]"
        line += f"   oracle {v['oracle_during_retrained']:.3f}"
        regained = v.get("regained")
        shown.add_row(
            metric + (" (judged by)" if metric == task.metric else ""),
            line + (f"   regained {regained:.0%}" if regained is not None and np.isfinite(regained) else ""),
        )
    v = values["requests"]
    shown.add_row("requests", f"{v['answered']} answered, {v['failed']} failed, {v['unlogged']} answered but unlogged")
    v = values["alarm"]
    shown.add_row(
        "alarm",
        f"{v['windows_to_alarm']} windows after the drift; {v['false']} false in {v['stable_windows']} stable windows",
    )
    if v.get("evidence"):
        shown.add_row("", v["evidence"])
    v = values["labels"]
    shown.add_row(
        "labels bought",
        f"{v['bought']} of {v['rows']} rows ({v['share']:.1%}); spread to more: {v['spread_accuracy']:.1%} right, "
        f"{v['spread_coverage']:.0%} of rows covered",
    )
    shown.add_row("labels given", f"{v['held_for_evaluation']} rows with a label judge the models and train none")
    v = values["registry"]
    shown.add_row("registry", f"champion v{v['champion']}, fallback v{v['fallback']}, versions {v['versions']}")
    seconds = dict(values["seconds"])
    total = seconds.pop("total")
    shown.add_row("seconds", ", ".join(f"{name} {s:.1f}" for name, s in seconds.items()) + f"; total {total:.0f}")
    shown.add_row("memory", f"{values['memory']['peak_mb']:.0f} MB at the peak, all processes together")
    return shown


def picture(
    answers: pd.DataFrame, windows: pd.DataFrame, moments: Moments, task: Task, oracle: float, path: Path
) -> Path:
    """Accuracy on live traffic over time, with drift, alarm, retraining and swap marked.

    answers: seq, at, prediction, truth, model_version, phase, in the order of the log; windows: from_seq, to_seq, odd;
    oracle: the accuracy to hope for on the drifted traffic.
    """
    from matplotlib.figure import Figure

    chunk = 125
    answers = answers[answers["truth"].notna()]
    seq = answers["seq"].to_numpy(dtype=np.float64)
    right = (answers["prediction"].astype(int) == answers["truth"].astype(int)).to_numpy(dtype=np.float64)

    def place(at: float) -> float:
        """Where in the order of requests a moment lies."""
        return float(seq[min(int(np.searchsorted(answers["at"].to_numpy(dtype=np.float64), at)), len(seq) - 1)])

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axis = figure.subplots()
    for position, (_, window) in enumerate(windows[windows["odd"] == 1].iterrows()):
        name = "window that the monitor found odd" if position == 0 else None
        axis.axvspan(window["from_seq"], window["to_seq"], color="#c44e52", alpha=0.13, lw=0, label=name)
    versions = answers["model_version"].to_numpy()
    for version, colour in zip(sorted(set(versions)), ("#4c72b0", "#dd8452", "#55a868", "#8172b3"), strict=False):
        own = np.flatnonzero(versions == version)
        groups = [g for g in np.array_split(own, max(1, len(own) // chunk)) if len(g)]
        x, y = [seq[g].mean() for g in groups], [right[g].mean() for g in groups]
        axis.plot(x, y, "o-", ms=3.5, lw=1.4, color=colour, label=f"answered by model version {version}")
    if np.isfinite(oracle) and moments.drift:
        axis.hlines(oracle, place(moments.drift), seq[-1], ls=":", color="black", lw=1.2, label="oracle in the dark")
    if moments.retrain and moments.retrained:
        start, end = place(moments.retrain), place(moments.retrained)
        axis.axvspan(start, end, ymax=0.055, color="#8172b3", alpha=0.7, lw=0)
        middle = ((start + end) / 2, 0.065)
        axis.annotate("retraining", middle, xycoords=("data", "axes fraction"), ha="center", fontsize=9)
    marks = [(place(at), name, height) for at, name, height in (
        (moments.drift, "light off", 0.99), (moments.alarm, "alarm", 0.91), (moments.swap, "swap", 0.99),
    ) if at]  # fmt: skip
    light = answers.loc[answers["phase"] == "clean", "seq"]
    if len(light):
        marks.append((float(light.iloc[0]), "light on", 0.91))
    for where, name, height in marks:
        axis.axvline(where, color="black", lw=1, ls="--")
        axis.annotate(f" {name}", (where, height), xycoords=("data", "axes fraction"), va="top", weight="bold")
    axis.set(
        title=f"{task.name}: does the model recover from the drift by itself?",
        xlabel="live requests, in the order in which they were answered",
        ylabel=f"accuracy ({chunk} requests a point)",
        ylim=(0.0, 1.05),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _plain(value: Any) -> Any:
    """JSON has no NaN and knows no numpy scalars."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value
