"""The sites of one round: who is asked, and whether enough of them answered.

Selection is a pure function of (seed, round, population): a resumed run asks the same sites again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.draws import draw_seed


@dataclass(frozen=True)
class Committed:
    reports: int


@dataclass(frozen=True)
class Abandoned:
    """A round without effect: the state stays as it was."""

    reason: str


@dataclass(frozen=True)
class Cohort:
    """goal: sites a round wants, 0 for all; over_selection: how many more are asked; minimum: share that must report.

    After Bonawitz et al., "Towards federated learning at scale: system design", 2019, section 2.2.
    """

    goal: int = 0
    over_selection: float = 1.0
    minimum: float = 0.8

    def select(self, population: Sequence[str], seed: int, round_number: int) -> list[str]:
        """The sites asked in a round, in a fixed order."""
        ordered = sorted(population)
        wanted = len(ordered) if self.goal == 0 else min(len(ordered), _ceil(self.goal * self.over_selection))
        if wanted == len(ordered):
            return ordered
        rng = np.random.default_rng(draw_seed("cohort", seed, round_number))
        return [ordered[i] for i in sorted(rng.choice(len(ordered), size=wanted, replace=False))]

    def judge(self, asked: int, reports: int, failures: Sequence[str]) -> Committed | Abandoned:
        goal = asked if self.goal == 0 else min(self.goal, asked)
        needed = max(1, _ceil(self.minimum * goal))
        if reports >= needed:
            return Committed(reports)
        why = "; ".join(failures[:3]) or "no reason given"
        return Abandoned(f"{reports} of the {needed} reports needed came back ({why})")


def _ceil(value: float) -> int:
    """As on paper: 10 · 1.1 is 11 sites, though in binary it is a little more."""
    return math.ceil(round(value, 9))
