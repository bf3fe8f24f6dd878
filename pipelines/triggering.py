"""When to show a suggestion: a threshold chosen from what devices report in sum, and what it did once it was live.

A device sends two short histograms over its model's score, proposals and clicks by bin; only their sums over many
devices are looked at. They give the curve of click-through rate against the share of proposals that is still shown,
a threshold on it, and a prediction. Live, on other devices and days, devices with the threshold are compared to
devices without, as in Yang et al., "Applied federated learning: improving Google keyboard query suggestions"
(arXiv 1812.02903).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from models.errors import BadInput
from models.population import Ids, Population, Ragged
from models.scores import Scores, outputs_of

BINS = 200
DEVICES_AT_ONCE = 2000


@dataclass(frozen=True)
class Histogram:
    """Proposals and clicks by the model's score: int64 [bins] each, over equal parts of [0, 1]."""

    proposals: NDArray[np.int64]
    clicks: NDArray[np.int64]

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.proposals + other.proposals, self.clicks + other.clicks)


@dataclass(frozen=True)
class Threshold:
    """A point of the curve: proposals that score at least `score` are shown.

    shown: share of proposals that are; kept: share of clicks that are kept; ctr: clicks by shown proposal; base:
    clicks by proposal where all are shown.
    """

    score: float
    shown: float
    kept: float
    ctr: float
    base: float

    @property
    def uplift(self) -> float:
        """How much of the rate is gained: 0.3 means 30 percent more clicks by shown proposal."""
        return self.ctr / self.base - 1.0


@dataclass(frozen=True)
class Live:
    """What happened: as Threshold, measured; the clicks kept are unknown, since what is not shown is not clicked.

    ctr_error, base_error: standard errors, by device, since one user's answers hang together.
    """

    shown: float
    ctr: float
    ctr_error: float
    base: float
    base_error: float

    @property
    def uplift(self) -> float:
        return self.ctr / self.base - 1.0

    @property
    def uplift_error(self) -> float:
        relative = (self.ctr_error / self.ctr) ** 2 + (self.base_error / self.base) ** 2
        return float(self.ctr / self.base * np.sqrt(relative))


def reported(scores: Scores, rows: Ragged, bins: int = BINS) -> Histogram:
    """The sum of what the devices of these rows would send; adding up devices or rows comes to the same."""
    x, y = _own_rows(rows)
    where = np.minimum((_chances(scores, x) * bins).astype(np.int64), bins - 1)
    clicked = np.bincount(where[y == 1], minlength=bins).astype(np.int64)
    return Histogram(np.bincount(where, minlength=bins).astype(np.int64), clicked)


def survey(scores: Scores, population: Population, devices: Ids, bins: int = BINS) -> Histogram:
    """The sum of the devices' histograms over rows that trained no model."""
    nothing = np.zeros(bins, dtype=np.int64)
    total = Histogram(nothing, nothing)
    for first in range(0, len(devices), DEVICES_AT_ONCE):
        total += reported(scores, population.held_out(devices[first : first + DEVICES_AT_ONCE]), bins)
    return total


def curve(histogram: Histogram) -> list[Threshold]:
    """What each threshold between bins would have done, from showing all to showing the least that anyone saw."""
    proposals = np.cumsum(histogram.proposals[::-1])[::-1]
    clicks = np.cumsum(histogram.clicks[::-1])[::-1]
    if not clicks[0]:
        raise BadInput(f"{proposals[0]} proposals and no click: no threshold can be chosen; ask more devices")
    base, bins = clicks[0] / proposals[0], len(proposals)
    return [
        Threshold(i / bins, float(p / proposals[0]), float(c / clicks[0]), float(c / p), float(base))
        for i, (p, c) in enumerate(zip(proposals, clicks, strict=True))
        if p
    ]


def choose_threshold(histogram: Histogram, keep_clicks: float = 0.0, keep_shown: float = 0.0) -> Threshold:
    """The threshold of the highest click-through rate that keeps so large shares of the clicks and of the proposals.

    Raises:
        BadInput: shares outside [0, 1], or both 0: then the highest rate is that of a handful of proposals.
    """
    if not (0.0 <= keep_clicks <= 1.0 and 0.0 <= keep_shown <= 1.0) or keep_clicks == keep_shown == 0.0:
        raise BadInput(
            f"keep_clicks={keep_clicks:g}, keep_shown={keep_shown:g}: give at least one share above 0, at most 1"
        )
    allowed = [point for point in curve(histogram) if point.kept >= keep_clicks and point.shown >= keep_shown]
    return max(allowed, key=lambda point: (point.ctr, point.shown))


def go_live(scores: Scores, threshold: float, treated: Ragged, control: Ragged) -> Live:
    """Serve the treated devices' proposals with the threshold, the control devices' all."""
    x, y = _own_rows(treated)
    shown = _chances(scores, x) >= threshold
    ctr, ctr_error = _rate(y * shown, shown.astype(np.int64), treated.counts)
    _, all_clicks = _own_rows(control)
    base, base_error = _rate(all_clicks, np.ones_like(all_clicks), control.counts)
    return Live(float(shown.mean()), ctr, ctr_error, base, base_error)


def compared(predicted: Threshold, live: Mapping[str, Live]) -> Table:
    """Predicted against live, a row for each time it was measured. Live figures are ± two standard errors."""
    title = f"Shown from a score of {predicted.score:.3f}: predicted and live"
    table = Table("", "shown", "CTR", "CTR without", "uplift", title=title, title_justify="left")
    table.add_row(
        "predicted",
        f"{predicted.shown:.1%}",
        f"{predicted.ctr:.2%}",
        f"{predicted.base:.2%}",
        f"{predicted.uplift:+.1%}",
    )
    for name, found in live.items():
        table.add_row(
            name,
            f"{found.shown:.1%}",
            f"{found.ctr:.2%} ± {2 * found.ctr_error:.2%}",
            f"{found.base:.2%} ± {2 * found.base_error:.2%}",
            f"{found.uplift:+.1%} ± {2 * found.uplift_error:.1%}",
        )
    return table


def _own_rows(rows: Ragged) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """The clients' rows one after the other, wherever in the block they lie."""
    position = np.arange(int(rows.counts.sum())) - np.repeat(np.cumsum(rows.counts) - rows.counts, rows.counts)
    index = torch.from_numpy(np.repeat(rows.starts, rows.counts) + position)
    return rows.x[index], rows.y[index].numpy()


def _chances(scores: Scores, x: torch.Tensor) -> NDArray[np.float64]:
    """The model's chance of a click, [rows]."""
    return np.asarray(torch.sigmoid(outputs_of(scores, x)[:, 0].double()).numpy())


def _rate(clicks: NDArray[np.int64], shown: NDArray[np.int64], counts: Ids) -> tuple[float, float]:
    """Clicks by shown proposal and its standard error, of a ratio of sums over devices.

    Raises:
        BadInput: nothing was shown, or nothing clicked.
    """
    if not clicks.sum():
        raise BadInput(f"of {len(shown)} proposals {shown.sum()} were shown and none clicked; serve more devices")
    device = np.repeat(np.arange(len(counts)), counts)
    by_device = np.bincount(device, clicks, len(counts)), np.bincount(device, shown, len(counts))
    total = by_device[1].sum()
    rate = by_device[0].sum() / total
    return float(rate), float(np.sqrt(((by_device[0] - rate * by_device[1]) ** 2).sum()) / total)
