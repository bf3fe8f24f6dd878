"""The members of one round: who may take part, who is asked, and whether enough of them answered.

Selection among named sites is a pure function of (seed, round, population): a resumed run asks the same sites again.
Devices select themselves, by coming when they are able (`gathering.py`); what they must be is their `Eligibility`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.draws import draw_seed
from models.errors import BadInput

DAY_S = 86_400.0


@dataclass(frozen=True)
class Committed:
    reports: int


@dataclass(frozen=True)
class Abandoned:
    """A round without effect: the state stays as it was."""

    reason: str


@dataclass(frozen=True)
class Eligibility:
    """What a device must be to take part. Sites are not asked for any of it.

    minimum_examples: training rows it holds; minimum_separation_s: between two contributions of one device;
    locales: of the keyboard, none for all; charging, unmetered, idle: what must hold for the whole session.

    The words are those of google-parfait/federated-compute's population eligibility spec (data availability,
    minimum separation).
    """

    minimum_examples: int = 1
    minimum_separation_s: float = DAY_S
    minimum_memory_gb: float = 0.0
    locales: tuple[str, ...] = ()
    charging: bool = True
    unmetered: bool = True
    idle: bool = True


@dataclass(frozen=True)
class Cohort:
    """goal: members a round wants, 0 for all; over_selection: how many more are asked; minimum: share that must report.

    The rest is for devices, which come by themselves. target_selection_s: how long pace steering wants a selection to
    take; selection_timeout_s: after it a selection goes on with the share `minimum` of those wanted; patience_s:
    after it an emptier one is given up; deadline_s: for the reports, from the end of the selection.

    After Bonawitz et al., "Towards federated learning at scale: system design", 2019, sections 2.2 and 2.3.
    """

    goal: int = 0
    over_selection: float = 1.0
    minimum: float = 0.8
    deadline_s: float = 300.0
    target_selection_s: float = 60.0
    selection_timeout_s: float = 600.0
    patience_s: float = DAY_S
    eligibility: Eligibility = field(default_factory=Eligibility)

    @property
    def wanted(self) -> int:
        """Members asked where there are enough."""
        return _ceil(self.goal * self.over_selection)

    @property
    def least(self) -> int:
        """Devices without which a selection does not go on: as over-selected as the full number is."""
        return max(1, _ceil(self.goal * self.over_selection * self.minimum))

    def select(self, population: Sequence[str], seed: int, round_number: int) -> list[str]:
        """The sites asked in a round, in a fixed order."""
        ordered = sorted(population)
        wanted = len(ordered) if self.goal == 0 else min(len(ordered), self.wanted)
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

    def require_goal(self, size: int) -> None:
        """Refuse a cohort that a fleet of `size` devices can never fill."""
        if self.goal < 1:
            raise BadInput("the cohort of a fleet has goal 0, and a fleet cannot be asked whole; set a goal above 0")
        if self.least > size:
            raise BadInput(
                f"a round needs {self.least} devices at once (goal {self.goal}, over-selection {self.over_selection:g},"
                f" minimum {self.minimum:g}), and the fleet has {size}; lower the goal or enlarge the fleet"
            )


KEYBOARD_COHORT = Cohort(
    goal=100,
    over_selection=1.3,
    minimum=0.8,
    deadline_s=300.0,
    eligibility=Eligibility(minimum_memory_gb=2.0, locales=("en-US", "en-CA")),
)
"""As Gboard trains: charging, on an unmetered network, idle, at least 2 GB of memory, English of the US or Canada.

Yang et al., "Applied federated learning: improving Google keyboard query suggestions", 2018, section 3; Bonawitz et
al., 2019, section 9: 130% of the goal are selected, to make up for the 6 to 10% that drop out and for stragglers.
"""


def _ceil(value: float) -> int:
    """As on paper: 10 · 1.1 is 11 sites, though in binary it is a little more."""
    return math.ceil(round(value, 9))
