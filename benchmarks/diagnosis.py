"""Are the causes right? Worlds in which the cause of an error is known, because it was put there.

    python benchmarks/diagnosis.py [--seeds 2,3,4,5] [--quick]

Five sites with cameras of their own learn the digits federated, and from MNIST where FEDLOOP_DATA has it. In each
world one thing is wrong: a class is in no labelling (unseen), the labels of one cluster say another class
(mislabelled), a class has a hundredth of the weight (mislearned; a single cluster that is left out is learned from its
neighbours, and leaves no errors to explain), or the light is off at the camera (unreadable). Only real errors of the
trained model count: rows of that class or cluster, or dark pictures of rows that the model knew in the light. The
seeds draw pools, sites, cameras, class and cluster; what was tuned was tuned on seeds 100 and 101 of the digits, after
a look at 0 and 1, so figures are of others. --quick takes one
seed and a third of the rounds of the digits alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from diagnosis_worlds import digits, mnist, worlds

from models.errors import FedloopError


def summary(found: pd.DataFrame) -> dict[str, object]:
    """Shares by true cause, the diagonal with its spread over seeds, and how often the tests err on right rows."""
    from pipelines.federated.causes import CAUSES

    figures: dict[str, object] = {}
    for kind in (*CAUSES, "ordinary"):
        own = found[found["kind"] == kind]
        shares = {cause: round(float((own["cause"] == cause).mean()), 4) for cause in CAUSES} if len(own) else {}
        figures[kind] = {"errors": len(own), "found": shares}
        if kind in CAUSES and len(own):
            by_seed = own.groupby("seed")["cause"].apply(lambda found, kind=kind: float((found == kind).mean()))
            figures[kind] |= {  # type: ignore[operator]
                "diagonal": shares[kind],
                "lowest_seed": round(float(by_seed.min()), 4),
                "highest_seed": round(float(by_seed.max()), 4),
            }
    once = found.groupby(["seed", "world", "site"])[["right", "false_unseen", "false_unreadable"]].first().sum()
    figures["false_rates"] = {
        name: round(float(once[f"false_{name}"] / once["right"]), 4) for name in ("unseen", "unreadable")
    }
    return figures


def draw(figures: dict[str, dict], path: Path) -> None:  # type: ignore[type-arg]
    """The confusion tables side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from pipelines.federated.causes import CAUSES

    names = list(figures)
    figure, axes = plt.subplots(1, len(names), figsize=(5.2 * len(names), 4.4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        kinds = [kind for kind in (*CAUSES, "ordinary") if figures[name][kind]["errors"]]
        shares = np.array([[figures[name][kind]["found"][cause] for cause in CAUSES] for kind in kinds])
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.6 else "black"
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(CAUSES)), CAUSES, rotation=20)
        axis.set_yticks(range(len(kinds)), [f"{kind}\n({figures[name][kind]['errors']} errors)" for kind in kinds])
        axis.set(title=name, xlabel="found")
    axes[0][0].set_ylabel("put there (ordinary: other errors)")
    figure.suptitle("Is the cause that was found the one that was put there?")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def keep(figures: dict[str, dict], path: Path) -> None:  # type: ignore[type-arg]
    """Write figures and picture: those of the digits by cause, others under their name. What is left out keeps its."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    kept = before | figures.get("digits", {}) | {name: own for name, own in figures.items() if name != "digits"}
    path.write_text(json.dumps(kept, indent=2) + "\n")
    others = {name: own for name, own in kept.items() if name == "mnist"}
    draw(({"digits": kept} if "unseen" in kept else {}) | others, path.with_suffix(".png"))


def main() -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    from pipelines.federated.causes import CAUSES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="2,3,4,5")
    parser.add_argument("--sources", default="digits,mnist")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "diagnosis.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")][: 1 if arguments.quick else None]
    console, kept = Console(width=110), {}
    for name in arguments.sources.split(",")[: 1 if arguments.quick else None]:
        try:
            source = {"digits": digits, "mnist": mnist}[name]()
        except FedloopError as error:
            console.print(f"{name}: left out: {error}")
            continue
        parts: list[pd.DataFrame] = []
        for seed in seeds:
            rounds = source.rounds // 3 if arguments.quick else source.rounds
            for number, found in enumerate(worlds(source, seed, rounds)):
                parts.append(found.assign(world=number))
                own = found[found["kind"] != "ordinary"]
                line = own["cause"].value_counts().to_dict()
                console.print(f"{name} seed {seed} {own['kind'].min() if len(own) else 'no errors'}: {line}")
            done = seeds[: seeds.index(seed) + 1]
            kept[name] = {"seeds": done, **summary(pd.concat(parts, ignore_index=True))}
            if not arguments.quick:
                keep(kept, arguments.out)
        table = Table(title=f"{name}: causes found (columns) for causes put there (rows)", title_justify="left")
        for column in ("put there", "errors", *CAUSES, "seeds from, to"):
            table.add_column(column, justify="right")
        for kind in (*CAUSES, "ordinary"):
            own = kept[name][kind]
            spread = f"{own['lowest_seed']:.2f}, {own['highest_seed']:.2f}" if "diagonal" in own else ""
            table.add_row(kind, str(own["errors"]), *(f"{own['found'].get(c, 0):.3f}" for c in CAUSES), spread)
        console.print(table)
        console.print(f"on rows that the model was right on: {kept[name]['false_rates']}")
    if arguments.quick:
        return
    console.print(f"kept in {arguments.out} and {arguments.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
