"""One picture of a triggering threshold: the curve that was predicted, and where the live days came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.triggering import Histogram, Live, Threshold, curve


def picture(histogram: Histogram, chosen: Threshold, live: Mapping[str, Live], path: Path) -> Path:
    """Click-through rate against the share shown: predicted as a line, live as points ± two standard errors."""
    from matplotlib.figure import Figure

    # Below a fiftieth of the proposals the rate is that of a few.
    points = [point for point in curve(histogram) if point.shown >= 0.02]
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axis = figure.subplots()
    shown = [100 * point.shown for point in points]
    axis.plot(shown, [100 * point.ctr for point in points], color="#4c72b0", lw=1.8, label="predicted, any threshold")
    axis.plot(100 * chosen.shown, 100 * chosen.ctr, "o", ms=9, color="#4c72b0", label="predicted, the chosen threshold")
    days = list(live.values())
    for name, colour, measured in (
        ("live, with the threshold", "#c44e52", [(day.shown, day.ctr, 2 * day.ctr_error) for day in days]),
        ("live, everything shown", "#8c8c8c", [(1.0, day.base, 2 * day.base_error) for day in days]),
    ):
        if measured:
            x, y, error = 100 * np.array(measured).T
            axis.errorbar(x, y, yerr=error, fmt="s", ms=5, capsize=3, color=colour, label=name)
    axis.set(
        title="Does the threshold do live what the devices' histograms predicted?",
        xlabel="proposals still shown (%)",
        ylabel="clicks by shown proposal (%)",
        xlim=(0, 104),
        ylim=(0, None),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
