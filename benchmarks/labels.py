"""What a label is worth, by how it was chosen: a model's quality against the share of rows that were labelled.

    python benchmarks/labels.py [--quick] [--worlds digits retina mnist mnist-60000] [--seeds 5]

Our strategies go through the real jobs over skewed sites; scikit-activeml's are called on the same rows pooled, which
no federation could do. Everyone's labels then train the same model in the same steps, on the same seeds.
`central+spread` is the default of a training: what `central` bought, and what it spread to. A cell that was measured
is kept under $FEDLOOP_HOME/labels, so a run that was ended goes on. --quick: digits, one seed, two budgets.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from label_worlds import RECIPES, World, build, score, train
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines.federated.choosing import STRATEGIES
from pipelines.federated.files import digest, write_atomically
from pipelines.federated.jobs import Parameters
from pipelines.label import label
from pipelines.settings import LabelSettings

RESULTS = Path(__file__).parent / "results" / "labels.json"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "labels.png"
CELLS = Path(os.environ.get("FEDLOOP_HOME", ".fedloop")) / "labels"
BUDGETS = (0.01, 0.02, 0.05, 0.10, 0.20)
PEERS = ("TypiClust", "ProbCover", "RandomSampling")
SPREAD = "central+spread"
LARGE = "mnist-60000"
FIRST = ("central", SPREAD, "random", *PEERS)
"""Measured first, so that a run that is ended early has what the targets are about."""
ARMS = (*FIRST, *(name for name in STRATEGIES if name not in FIRST))


def ours(world: World, arm: str, budget: float, seed: int) -> tuple[Parameters, dict[str, float]]:
    """A strategy through the jobs. One that needs a model gets one of half the budget, bought by `central`."""
    strategy, _, spread = arm.partition("+")
    place = {row: i for i, row in enumerate(world.row_ids)}

    def bought(share: float, name: str, model: Parameters | None) -> dict[str, Any]:
        settings = LabelSettings(budget_share=share, strategy=name, spread="graph" if spread else "none")
        done = label(engine, world.snapshots, len(world.row_ids), settings, seed, model)
        tables = [site.store.labels(done.id) for site in engine.sites.values()]
        rows = np.concatenate([[place[row] for row in table["row_id"]] for table in tables]).astype(np.int64)
        labels = np.concatenate([table["label"] for table in tables]).astype(np.int64)
        weights = np.concatenate([table["weight"] for table in tables]).astype(np.float64)
        return {"done": done, "trained": train(world, rows, labels, weights, seed)}

    with world.engine() as engine:
        if not STRATEGIES[strategy].needs_model:
            last = bought(budget, strategy, None)
            paid = last["done"].newly_bought
        else:
            first = bought(budget / 2, "central", None)
            # Labels bought before are learned from again: the second labelling holds whatever was ever paid for.
            last = bought(budget - budget / 2, strategy, first["trained"])
            paid = first["done"].newly_bought + last["done"].newly_bought
    done = last["done"]
    figures = {"labels": paid, "spread": done.spread, "spread_accuracy": done.accuracy, "sites_off": done.sites_off}
    return last["trained"], {name: float(value) for name, value in figures.items() if value == value}


def theirs(world: World, arm: str, budget: float, seed: int) -> tuple[Parameters, dict[str, float]]:
    """A strategy of scikit-activeml on all rows pooled, in the task's own embedding."""
    from skactiveml import pool

    count = max(1, int(budget * len(world.row_ids)))
    features = world.task.embed(world.images)
    unknown = np.full(len(features), np.nan)
    classes = {"n_classes": len(world.task.classes)} if arm == "ProbCover" else {}
    query = getattr(pool, arm)(random_state=seed, **classes)
    rows: NDArray[np.int64] = np.asarray(query.query(features, unknown, batch_size=count), dtype=np.int64)
    return train(world, rows, world.labels[rows], np.ones(len(rows)), seed), {"labels": float(count)}


def measure(name: str, seeds: tuple[int, ...], budgets: tuple[float, ...], arms: tuple[str, ...]) -> None:
    """All cells of one world that are not there yet, on the rows of the first seed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every = [(seed, arm, budget) for seed in seeds for arm in arms for budget in budgets]
    todo = [(seed, arm, budget) for seed, arm, budget in every if not cell(name, seed, arm, budget).is_file()]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as folder:
        world = build(RECIPES[name], seeds[0], Path(folder))
        for seed, arm, budget in todo:
            began = time.process_time()
            model, figures = (theirs if arm in PEERS else ours)(world, arm, budget, seed)
            figures |= score(world, model) | {"cpu_s": round(time.process_time() - began, 2)}
            write_atomically(cell(name, seed, arm, budget), json.dumps(figures).encode())


def cell(name: str, seed: int, arm: str, budget: float) -> Path:
    key = digest(vars(RECIPES[name]), LabelSettings().model_dump(exclude={"budget_share", "strategy"}))
    return CELLS / f"{name}-{key}" / f"{arm}-{budget:g}-{seed}.json"


def collected(worlds: list[str], seeds: range) -> dict[str, Any]:
    """World → budget → arm → mean, se and what it came with; best_peer, random; ours less theirs, paired by seed."""
    found: dict[str, Any] = {}
    for name in worlds:
        metric = "auc" if name == "retina" else "accuracy"
        for budget in (0.005, *BUDGETS):
            cells = {
                arm: {s: json.loads(p.read_text()) for s in seeds if (p := cell(name, s, arm, budget)).is_file()}
                for arm in ARMS
            }
            values = {arm: {s: c[metric] for s, c in own.items()} for arm, own in cells.items() if own}
            if not values:
                continue
            row: dict[str, Any] = {}
            for arm, own in values.items():
                every = {k for c in cells[arm].values() for k in c} - {metric}
                extra = {
                    k: round(float(np.mean([c[k] for c in cells[arm].values() if k in c])), 4) for k in sorted(every)
                }
                row[arm] = _mean(list(own.values())) | {"seeds": len(own)} | extra
            peers = {arm: row[arm]["mean"] for arm in PEERS if arm in row}
            if peers:
                best = max(peers, key=lambda arm: peers[arm])
                row["best_peer"] = {"name": best, **row[best]}
                row["ours_less_best_peer"] = _paired(values, "central", best)
            if "random" in values:
                row["ours_less_random"] = _paired(values, "central", "random")
                row["spread_less_random"] = _paired(values, SPREAD, "random")
            row["spread_less_none"] = _paired(values, SPREAD, "central")
            found.setdefault(name, {"metric": metric})[f"{budget:g}"] = row
    return found


def _mean(values: list[float]) -> dict[str, float]:
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {"mean": round(float(np.mean(values)), 4), "se": round(float(spread), 4)}


def _paired(values: dict[str, dict[int, float]], one: str, other: str) -> dict[str, float] | None:
    shared = sorted(values.get(one, {}).keys() & values.get(other, {}).keys())
    return _mean([values[one][s] - values[other][s] for s in shared]) if shared else None


def show(found: dict[str, Any]) -> None:
    for name, world in found.items():
        budgets = [key for key in world if key != "metric"]
        table = Table(
            title=f"{name}: {world['metric']} on the test set by share of rows labelled, mean ± standard error"
        )
        for column in ("labels chosen by", *(f"{100 * float(b):g}%" for b in budgets)):
            table.add_column(column)
        for arm in ARMS:
            cells = [world[b].get(arm) for b in budgets]
            if any(cells):
                table.add_row(arm, *(f"{c['mean']:.3f} ± {c['se']:.3f} ({c['seeds']})" if c else "–" for c in cells))
        Console().print(table)


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel a world: quality against budget, with standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = [name for name in ("digits", "retina", "mnist") if name in found]
    figure, axes = plt.subplots(1, len(worlds), figsize=(4.6 * len(worlds), 4.2), squeeze=False)
    style = {"central": ("C0", "-"), SPREAD: ("C3", "-"), "random": ("0.5", "-"), "TypiClust": ("C2", "--")}
    style |= {"ProbCover": ("C1", "--"), "typical": ("C4", ":")}
    for axis, name in zip(axes[0], worlds, strict=True):
        budgets = [key for key in found[name] if key != "metric"]
        for arm, (colour, line) in style.items():
            points = [(100 * float(b), found[name][b][arm]) for b in budgets if arm in found[name][b]]
            if points:
                x, y = [p for p, _ in points], [c["mean"] for _, c in points]
                bars = [c["se"] for _, c in points]
                axis.errorbar(x, y, yerr=bars, color=colour, linestyle=line, marker="o", ms=3, capsize=2, label=arm)
        axis.set_xscale("log")
        axis.set_xticks([100 * float(b) for b in budgets], [f"{100 * float(b):g}" for b in budgets])
        axis.minorticks_off()
        axis.set_xlabel("rows with a bought label, %")
        axis.set_ylabel("AUC on the test set" if name == "retina" else "accuracy on the test set")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8, title="dashed: scikit-activeml, rows pooled", title_fontsize=7)
    figure.suptitle("How good is a model by which rows were labelled? Bars: standard error over seeds")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worlds", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="measure nothing, write what there is")
    options = parser.parse_args()
    worlds = ["digits"] if options.quick else options.worlds
    seeds = range(1 if options.quick else options.seeds)
    rounds = [(FIRST, BUDGETS[1:3])] if options.quick else [(FIRST, BUDGETS[:3]), (FIRST, BUDGETS), (ARMS, BUDGETS)]
    if not options.show:
        with ProcessPoolExecutor(options.processes) as processes:
            waiting = []
            if LARGE in worlds:
                # Dealt to the sites once: so many rows take longer to ingest than to label.
                waiting.append(processes.submit(measure, LARGE, tuple(seeds), (0.005,), (SPREAD, "central", "random")))
            for arms, budgets in rounds:
                smaller = [(name, seed) for seed in seeds for name in worlds if name != LARGE]
                waiting += [processes.submit(measure, name, (seed,), budgets, arms) for name, seed in smaller]
            for future in waiting:
                future.result()
    found = collected(worlds, seeds)
    show(found)
    if not options.quick:
        write_atomically(RESULTS, json.dumps(found, indent=1).encode() + b"\n")
        draw(found, PLOT)


if __name__ == "__main__":
    main()
