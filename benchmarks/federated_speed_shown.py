"""What `federated_speed.py` found, as tables for a terminal and as a picture; and what its peers are called."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

OURS, LOOP, PFL, FLOWER, FEDJAX = "fedloop", "plain_loop", "apple_pfl", "flower", "google_fedjax"
TITLES = {OURS: "fedloop", LOOP: "PyTorch loop", PFL: "pfl-research", FLOWER: "Flower", FEDJAX: "FedJAX"}


def table(found: dict[str, Any]) -> Group:
    """Everything that was found, for a rich console."""
    parts: list[Table | str] = []
    for name, of in found["workloads"].items():
        parts.append(f"\n{name}: {of['says']}; client updates a second")
        rows = Table()
        for column in ("peer", "variant", "median", "lowest – highest", "off by"):
            rows.add_column(column, justify="left" if column in ("peer", "variant") else "right")
        for variant in of["variants"].values():
            cells = [TITLES[variant["peer"]], variant["variant"]]
            if "median" in variant:
                spread = f"{short(variant['lowest'])} – {short(variant['highest'])}"
                cells += [short(variant["median"]), spread, f"{variant['difference']:.0e}"]
            else:
                cells += ["–", (variant.get("missing") or variant.get("failed") or "")[:60], ""]
            rows.add_row(*cells)
        parts.append(rows)
        for other, times in of.get("times", {}).items():
            named = f" ({times['is']})" if "is" in times else ""
            spread = f"{times['lowest']:.2f} – {times['highest']:.2f}"
            parts.append(f"  fedloop is {times['median']:.2f} times as fast as {other}{named}, {spread}")
        if "arithmetic" in of:
            share = of["arithmetic"]
            parts.append(
                f"  fedloop does {share['gflops']:.1f} GF/s, {share['share_of_peak']:.0%} of what products of large "
                f"matrices reach here ({share['peak_gflops']:.0f} GF/s)"
            )
    for name, rates in found["machine"].items():
        if isinstance(rates, dict):
            parts.append(f"machine, {name}: " + ", ".join(f"{key} {value:.0f}" for key, value in rates.items()))
    return Group(*parts)


def short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, NullFormatter

    # One hue carries the answer; the peers are told apart by shade, and every bar says its value.
    colours = {OURS: "#c2410c", LOOP: "#334155", PFL: "#64748b", FEDJAX: "#94a3b8", FLOWER: "#cbd5e1"}
    names = [name for name, of in found["workloads"].items() if of["best"]]
    figure, axes = pyplot.subplots(figsize=(9.5, 1.2 + 1.15 * len(names)), layout="constrained")
    height, least = 0.17, float("inf")
    for row, name in enumerate(names):
        of = found["workloads"][name]
        present = [peer for peer in colours if peer in of["best"]]
        for index, peer in enumerate(present):
            variant = of["variants"][of["best"][peer]]
            at = row + (index - (len(present) - 1) / 2) * height
            spread = [[variant["median"] - variant["lowest"]], [variant["highest"] - variant["median"]]]
            error = {"ecolor": "#0f172a", "error_kw": {"elinewidth": 0.8}}
            axes.barh(at, variant["median"], height * 0.9, xerr=spread, color=colours[peer], **error)
            least = min(least, variant["lowest"])
            axes.annotate(
                short(variant["median"]), (variant["highest"], at), (4, 0), textcoords="offset points", va="center",
                fontsize=7,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), [found["workloads"][name]["says"].replace(", ", "\n", 1) for name in names])
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=10.0 ** math.floor(math.log10(least * 0.7)))
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("client updates a second (log scale); best variant of each: median, lowest to highest")
    cores = found["machine"]["cores"]
    axes.set_title(f"How many clients does a machine with {cores} cores train in a second?", loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    keys = [Patch(color=colour, label=TITLES[peer]) for peer, colour in colours.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
