"""Should the keyboard show this suggestion? A triggering model, trained on a fleet of generated devices.

A logistic regression over 64 features decides which of a fixed baseline's proposals are shown, as in Yang et al.,
"Applied federated learning: improving Google keyboard query suggestions" (arXiv 1812.02903). What a device holds is
a function of (seed, day, device) alone: a fleet of 10^9 is as easy as one of 1,000, nothing is stored.
The same question on real people's answers is `models/coupon.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.draws import Words, draw_seed, seeds_of, words
from models.errors import BadInput
from models.fleet_task import FleetTask
from models.population import Ids, Population, Ragged
from models.scores import Scores, binary_quality, outputs_of
from models.suggestions import BLOCK, FEATURES, Floats, Truth, Users, propose

FEWEST, MOST = 5, 60
"""Examples on a device; 20 in the mean."""

EVALUATED = 4000
"""So many devices' held-out rows judge a model."""


@dataclass(frozen=True)
class Keyboard:
    """A fleet of keyboards: a Population.

    day: which day's rows; the users stay the same. drift: how far the topics' appeal swings over four weeks, in
    log-odds. examples: a fixed number of training rows on every device, instead of 5 to 60.
    """

    size: int
    seed: int = 0
    day: int = 0
    drift: float = 0.0
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInput(f"a fleet of {self.size} devices is none; give a population of at least 1")
        if self.examples is not None and self.examples < 1:
            raise BadInput(f"examples={self.examples}: a device holds at least 1 row; leave it out for 5 to 60")

    def on(self, day: int) -> Keyboard:
        """The same users on another day: new rows."""
        return replace(self, day=day)

    def counts(self, clients: Ids) -> Ids:
        return self._counts(self._seeds(clients))

    def rows(self, clients: Ids) -> Ragged:
        """x: float32 [rows, 64]; y: 1 where the user clicked."""
        return self._draw(clients, held_out=False)[0]

    def held_out(self, clients: Ids) -> Ragged:
        """Half as many rows as for training, at least 4, of the same day."""
        return self._draw(clients, held_out=True)[0]

    def odds(self, clients: Ids) -> Floats:
        """The true log-odds of a click for every held-out row: no model can order them better."""
        return self._draw(clients, held_out=True)[1]

    def _seeds(self, clients: Ids) -> Words:
        return seeds_of(draw_seed("keyboard", self.seed), clients)

    def _counts(self, seeds: Words) -> Ids:
        if self.examples is not None:
            return np.full(len(seeds), self.examples, dtype=np.int64)
        return np.take(_counts_by_chance(), (words(seeds, 1)[:, 0] >> np.uint64(56)).astype(np.int64))

    def _draw(self, clients: Ids, held_out: bool) -> tuple[Ragged, Floats]:
        seeds = self._seeds(np.asarray(clients, dtype=np.int64))
        counts = self._counts(seeds)
        if held_out:
            counts = np.maximum(counts // 2, 4)
        ends = np.cumsum(counts)
        starts, total = ends - counts, int(counts.sum())
        x, y = np.zeros((total, FEATURES), dtype=np.float32), np.empty(total, dtype=np.int64)
        odds = np.empty(total, dtype=np.float32)
        truth = Truth.on(self.day, self.drift)
        which = draw_seed("keyboard", "held out" if held_out else "training", self.day)
        for first in range(0, len(seeds), BLOCK):
            block = slice(first, min(first + BLOCK, len(seeds)))
            rows = slice(int(starts[first]), int(ends[block.stop - 1]))
            owner = np.repeat(np.arange(block.stop - first), counts[block])
            number = np.arange(rows.start, rows.stop) - starts[block][owner]
            row_seeds = seeds_of(which, seeds[block][owner] + number.astype(np.uint64))
            odds[rows] = propose(Users.draw(seeds[block]), owner, row_seeds, truth, x[rows], y[rows])
        return Ragged(torch.from_numpy(x), torch.from_numpy(y), starts, counts), odds


@cache
def _counts_by_chance() -> NDArray[np.int64]:
    """int64 [256]: how many examples a random byte stands for: log-normal, cut at 5 and 60."""
    from scipy.special import ndtri

    bell = np.asarray(ndtri((np.arange(256) + 0.5) / 256))
    return np.clip(np.rint(np.exp(2.85 + 0.55 * bell)), FEWEST, MOST).astype(np.int64)


def build_model() -> nn.Module:
    """65 parameters."""
    return nn.Linear(FEATURES, 1)


def evaluate(scores: Scores, population: Population) -> dict[str, float]:
    """AUC and log-loss over the held-out rows of up to 4,000 devices, spread evenly over the fleet."""
    devices = np.unique(np.linspace(0, population.size - 1, EVALUATED).astype(np.int64))
    rows = population.held_out(devices)
    return binary_quality(outputs_of(scores, rows.x)[:, 0], rows.y)


TASK = FleetTask(
    name="keyboard",
    build_model=build_model,
    population=Keyboard,
    evaluate=evaluate,
    metric="auc",
    default_size=1_000_000,
    recipe={"epochs": 1, "batch_size": 20, "learning_rate": 0.6, "goal": 500},
)
