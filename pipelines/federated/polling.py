"""Who comes to the server, and who is turned away: the polls of a fleet as blocks in the order of time.

Every device polls once in each retry window, at a moment of its own. Of all devices together that is a Poisson process
of rate size / window whose polls come from devices drawn alike, so no device has to be remembered. A device that does
not meet the conditions does not show up; one that shows up may still be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.population import Ids
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import Eligibility
from pipelines.federated.fleet import Fleet
from pipelines.federated.parallel import Parallel
from pipelines.federated.rest import Flags, Floats

Counts = Callable[[Ids], Ids]
"""How many training rows devices hold: `models.population.Population.counts`."""

VERDICTS = ("ineligible", "unavailable", "recent", "few_examples", "repeated", "full", "accepted")
"""What becomes of a poll. ineligible: locale or memory; unavailable: not charging, unmetered and idle; recent: the
device contributed within the minimum separation, and is to come back when that is over; repeated: it is here already;
full: no seat is free at the asynchronous server. Who is turned away otherwise comes back in the next retry window."""
INELIGIBLE, UNAVAILABLE, RECENT, FEW_EXAMPLES, REPEATED, FULL, ACCEPTED = range(len(VERDICTS))

SMALLEST_BLOCK, LARGEST_BLOCK = 1 << 10, 1 << 14
"""Polls looked at together. The arrays of the largest block fit into the processor's second cache."""


@dataclass(frozen=True)
class Comers(Parallel):
    """Devices that are here and able, as parallel arrays [devices].

    at_s: when they came; examples: rows they hold; until_s: how long they can stay.
    """

    at_s: Floats
    ids: Ids
    examples: Ids
    until_s: Floats


def nobody() -> Comers:
    none = np.zeros(0, dtype=np.int64)
    return Comers(np.zeros(0), none, none, np.zeros(0))


@dataclass(frozen=True)
class Block:
    """The polls up to a moment, since the block before: at_s, verdicts (uint8, of VERDICTS): [polls], not in order.

    accepted: who was accepted, in the order of ids.
    """

    up_to_s: float
    at_s: Floats
    verdicts: NDArray[np.uint8]
    accepted: Comers

    def tally(self, until_s: float) -> Ids:
        """How many polls up to a moment got which verdict: [len(VERDICTS)]."""
        verdicts = self.verdicts if until_s >= self.up_to_s else self.verdicts[self.at_s <= until_s]
        return np.bincount(verdicts, minlength=len(VERDICTS))


def polls(
    fleet: Fleet,
    needs: Eligibility,
    counts: Counts,
    clock: Clock,
    window_s: float,
    here: Callable[[], Ids],
    block: int,
    rng: np.random.Generator,
) -> Iterator[Block]:
    """The polls from clock.now_s on, without end. here(): devices that are at the server already, asked once a block.

    Cheap questions come first: of each device its locale and memory (one hash), then of the rest whether it is free
    (a second), then of those few that come their contributions and rows. All of it happens in the order of device
    numbers, in which look-ups stay in the cache. here() is sorted.
    """
    now = clock.now_s
    while True:
        # The last of n arrivals of a Poisson process, and before it the others, anywhere.
        span = float(rng.standard_gamma(block)) * window_s / fleet.size
        at = now + span * rng.random(block)
        at[rng.integers(block)] = now + span
        ids = _sorted_ids(fleet.size, block, rng)
        words = fleet.words(ids)
        verdicts = np.full(block, INELIGIBLE, dtype=np.uint8)
        left = np.flatnonzero(fleet.admits(words, needs))
        verdicts[left] = UNAVAILABLE
        available = fleet.conditions(words[left], at[left], needs)
        left, until = left[available.ready], available.until_s[available.ready]
        verdicts[left] = RECENT
        rested = ~clock.contributed(ids[left], at[left] - needs.minimum_separation_s)
        left, until = left[rested], until[rested]
        verdicts[left] = FEW_EXAMPLES
        examples = counts(ids[left])
        enough = examples >= needs.minimum_examples
        left, until, examples = left[enough], until[enough], examples[enough]
        verdicts[left] = REPEATED
        new = _new(ids[left], here())
        left, until, examples = left[new], until[new], examples[new]
        verdicts[left] = ACCEPTED
        now += span
        yield Block(now, at, verdicts, Comers(at[left], ids[left], examples, until))


def block_size(wanted: int, share: float) -> int:
    """A power of two near the polls that should bring `wanted` devices, where a share of the polls brings one."""
    return int(np.clip(1 << int(wanted / max(share, 1e-3)).bit_length(), SMALLEST_BLOCK, LARGEST_BLOCK))


def _sorted_ids(size: int, count: int, rng: np.random.Generator) -> Ids:
    """Devices drawn alike, with repetition, in order: n sorted uniform numbers are n of n + 1 exponential steps."""
    steps = np.cumsum(rng.standard_exponential(count + 1))
    return np.asarray(np.minimum((steps[:-1] * (size / steps[-1])).astype(np.int64), size - 1))


def _new(ids: Ids, here: Ids) -> Flags:
    """One poll of each device that is not here. ids, here: sorted."""
    new = np.ones(len(ids), dtype=bool)
    new[1:] = ids[1:] != ids[:-1]
    if len(here):
        new &= here[np.minimum(np.searchsorted(here, ids), len(here) - 1)] != ids
    return new
