"""Quality against bytes sent: the same rounds of the same clients under every kind of compression.

    python benchmarks/federated_compression.py [--quick] [--only mnist|keyboard]

MNIST: 100 of its writers (the 2NN of McMahan et al., 2017; digits where MNIST cannot be had). The keyboard is a
logistic regression of 65 parameters. Bytes are what the clients send: `size_bytes` of the stages, which is the length
of what they encode. --quick takes a twentieth of the rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from models import keyboard, mnist
from models.draws import seeds_of
from models.errors import FedloopError
from models.fleet_task import FleetTask, find_fleet_task
from models.population import Population
from models.scores import scores_of
from pipelines.federated.compression import ErrorFeedback, Quantise
from pipelines.federated.engines.fleet import FleetEngine
from pipelines.federated.engines.tuning import cores
from pipelines.federated.engines.turnout import Always
from pipelines.federated.kernels.choose import choose
from pipelines.federated.layout import Layout, parameters_of
from pipelines.federated.low_rank import LowRank
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.sparse import RandomMask, TopK
from pipelines.federated.stages import Stage, sent_bytes
from pipelines.federated.steps import steps_of
from pipelines.federated.strategies import fedavg
from pipelines.federated.training import begin, run_round
from pipelines.federated.work import LocalWork

HERE = Path(__file__).parent

STAGES: dict[str, tuple[Stage, ...]] = {
    "none": (),
    "8 bit": (Quantise(8),),
    "4 bit": (Quantise(4),),
    "top 10%": (ErrorFeedback(TopK(0.1)),),
    "top 10%, 8 bit": (ErrorFeedback(TopK(0.1, Quantise(8))),),
    "top 1%": (ErrorFeedback(TopK(0.01)),),
    "top 1%, nothing kept": (TopK(0.01),),
    "rank 4": (ErrorFeedback(LowRank(4)),),
    "mask 10%": (RandomMask(0.1),),
}
"""Top-k and low rank keep what they leave out for the next time (error feedback), but for one that shows why."""

LOSS = 0.01
"""A compressed run has arrived where its quality is within this of the best without compression."""


@dataclass(frozen=True)
class Setting:
    task: FleetTask
    population: Population
    work: LocalWork
    cohort: int
    rounds: int
    every: int  # rounds between evaluations


def settings(only: list[str] | None, quick: bool) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    if not only or "mnist" in only:
        try:
            task = replace(mnist.TASK, build_model=mnist.two_nn)
            population, name = task.population(100, 0), "mnist"
        except FedloopError:
            task, name = find_fleet_task("digits"), "digits"
            population = task.population(100, 0)
        work = LocalWork(epochs=1, batch_size=10, learning_rate=0.1)
        found[name] = Setting(task, population, work, 10 if quick else 20, 5 if quick else 100, 5)
    if not only or "keyboard" in only:
        work = LocalWork(epochs=1, batch_size=20, learning_rate=0.6)
        found["keyboard"] = Setting(keyboard.TASK, keyboard.Keyboard(2000), work, 100, 10 if quick else 200, 10)
    return found


def run(setting: Setting, stages: tuple[Stage, ...], seed: int = 0) -> list[tuple[int, float]]:
    """(reports so far, quality), now and then and after the last round."""
    torch.manual_seed(seed)
    model = setting.task.build_model()
    layout = Layout.of_model(model)
    initial = parameters_of(model)
    strategy = replace(fedavg(setting.work), stages=stages)
    plan = TrainingPlan((), {}, setting.rounds, seed, strategy)
    few = np.arange(4, dtype=np.int64)
    steps = steps_of(setting.population.rows(few), setting.work, seeds_of(0, few))
    kernel = choose(model, layout, steps, setting.work, None)
    turnout = Always(setting.population.size, setting.cohort)
    curve: list[tuple[int, float]] = []
    with FleetEngine(
        model, setting.population, turnout, strategy, kernel, cores(), 1, loss_every=setting.rounds
    ) as engine:
        state = begin(plan, initial)
        while state.round < setting.rounds:
            state = run_round(plan, state, engine)
            if state.round % setting.every == 0 or state.round == setting.rounds:
                scores = scores_of(model, state.parameters)
                quality = setting.task.evaluate(scores, setting.population)[setting.task.metric]
                curve.append((sum(record.reports for record in state.log), quality))
    return curve


def measure(
    quick: bool, only: list[str] | None = None, say: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """By task: its size in parameters, and by stage: bytes a report, quality against bytes, bytes until it arrives."""
    found: dict[str, dict[str, Any]] = {}
    for name, setting in settings(only, quick).items():
        layout = Layout.of_model(setting.task.build_model())
        own: dict[str, Any] = {
            "parameters": layout.size,
            "metric": setting.task.metric,
            "cohort": setting.cohort,
            "rounds": setting.rounds,
            "stages": {},
        }
        for label, stages in STAGES.items():
            size = sent_bytes(stages, layout)
            if stages and size >= sent_bytes((), layout):
                continue  # low rank leaves a model of one row as it is
            curve = [(reports * size, quality) for reports, quality in run(setting, stages)]
            own["stages"][label] = {"report_bytes": size, "curve": curve, "quality": curve[-1][1]}
            say(f"{name}, {label}: {size:,.0f} bytes a report, {setting.task.metric} {curve[-1][1]:.4f} at the end")
        best = max(quality for _, quality in own["stages"]["none"]["curve"])
        own["target"] = best - LOSS
        for stage in own["stages"].values():
            stage["arrived_bytes"] = next((sent for sent, quality in stage["curve"] if quality >= best - LOSS), None)
        found[name] = own
    return found


def tables(found: dict[str, dict[str, Any]]) -> list[Table]:
    shown = []
    for name, own in found.items():
        plain = own["stages"]["none"]
        table = Table(
            title=f"{name}: {own['parameters']:,} parameters, {own['rounds']} rounds of {own['cohort']} clients",
            title_justify="left",
        )
        metric, until = f"{own['metric']} at the end", f"MB sent until {own['target']:.3f}"
        for column in ("compression", "KB a report", "smaller by", metric, until, "fewer by"):
            table.add_column(column, justify="right")
        for label, stage in own["stages"].items():
            arrived, usual = stage["arrived_bytes"], plain["arrived_bytes"]
            table.add_row(
                label,
                f"{stage['report_bytes'] / 1e3:,.3g}",
                f"{plain['report_bytes'] / stage['report_bytes']:.3g} ×",
                f"{stage['quality']:.4f}",
                f"{arrived / 1e6:,.3g}" if arrived else "not reached",
                f"{usual / arrived:.3g} ×" if arrived else "–",
            )
        shown.append(table)
    return shown


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(STAGES, ("#0f172a", *pyplot.get_cmap("tab10").colors), strict=False))
    figure, axes = pyplot.subplots(1, len(found), figsize=(6.4 * len(found), 5.2), layout="constrained", squeeze=False)
    for axis, (name, own) in zip(axes[0], found.items(), strict=True):
        for label, stage in own["stages"].items():
            sent, quality = np.array(stage["curve"]).T
            dashed = "--" if label.endswith("nothing kept") else "-"
            axis.plot(
                sent / 1e6, quality, dashed, color=colours[label], lw=2.2 if label == "none" else 1.4, label=label
            )
        axis.axhline(own["target"], color="#94a3b8", lw=0.8, ls=":")
        note = f"{LOSS:g} below the best without compression"
        axis.annotate(note, (0.02, own["target"]), (0, 4), ("axes fraction", "data"), "offset points", fontsize=7)
        axis.set_ylim(bottom=0.5)
        axis.set_xscale("log")
        axis.set_xlabel("sent by all clients together, MB (log scale)")
        axis.set_ylabel(f"{own['metric']} on rows that nobody trained on")
        axis.set_title(f"{name}: {own['parameters']:,} parameters, {own['cohort']} clients a round", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower right", title="compression")
    figure.suptitle("How much does a fleet have to send for the same quality?", x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=["mnist", "keyboard"])
    arguments = parser.parse_args()
    found = measure(arguments.quick, arguments.only, print)
    for table in tables(found):
        Console(width=118).print(table)
    results = HERE / "results" / f"federated_compression{'-quick' if arguments.quick else ''}.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(found, indent=2) + "\n")
    print(f"kept in {results.relative_to(HERE.parent)}")
    if not arguments.quick:
        plot(found, HERE.parent / "docs" / "images" / "federated_compression.png")


if __name__ == "__main__":
    main()
