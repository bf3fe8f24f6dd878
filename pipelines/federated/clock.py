"""What a fleet's server remembers from round to round: the virtual time, who contributed lately, who is at work.

A `Clock` is a value: a round takes one and gives the next. It is part of a training's checkpoint, as named arrays, and
a run that goes on from them is bit-identical to one that never stopped. Its size follows from the contributions within
the separation window and the devices in flight, never from the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput
from models.population import Ids
from pipelines.federated.parallel import Parallel
from pipelines.federated.rest import Flags, Floats

TIME_BITS = 30
_TIME = (1 << TIME_BITS) - 1
"""Seconds of virtual time fit into 30 bits for 34 years; 33 bits are left for the device."""

TOTALS = (
    "rounds", "committed", "polled", "selected", "finished", "late",
    "dropped_configuration", "dropped_training", "dropped_reporting", "bytes_down", "bytes_up", "bytes_wasted",
)  # fmt: skip
"""What `Clock.totals` counts since the start."""

FIRST_GUESS = 0.1
"""Share of the polls that bring a device, before any was seen."""
LEARNING = 0.3
"""Weight of the latest selection in the running mean of its hour."""


def _none() -> Ids:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Flights(Parallel):
    """Devices at work for the asynchronous server, as parallel arrays [devices], in the order of their ends.

    versions: the round whose parameters they started from; fates: of `sessions.FATES`; ends_s: when the server hears
    of them or gives them up; bytes_down, bytes_up: what the whole session moves.
    """

    ids: Ids = field(default_factory=_none)
    versions: Ids = field(default_factory=_none)
    fates: Ids = field(default_factory=_none)
    ends_s: Floats = field(default_factory=lambda: np.zeros(0))
    bytes_down: Ids = field(default_factory=_none)
    bytes_up: Ids = field(default_factory=_none)


@dataclass(frozen=True)
class Clock:
    """now_s: virtual seconds since a midnight, UTC.

    contributions: int64, sorted: device · 2^30 + second (rounded up) of each contribution; shares: [24] what share of
    the polls brought a device, by the hour (UTC), nan where unknown; seen: the same of the latest selection; totals:
    [len(TOTALS)]; flights: of the asynchronous server.
    """

    now_s: float = 0.0
    contributions: Ids = field(default_factory=_none)
    shares: Floats = field(default_factory=lambda: np.full(24, np.nan))
    seen: float = FIRST_GUESS
    totals: Ids = field(default_factory=lambda: np.zeros(len(TOTALS), dtype=np.int64))
    flights: Flights = field(default_factory=Flights)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The whole clock as arrays of int64 and float64 by name, none of them without a dimension."""
        return {
            "times": np.array([self.now_s, self.seen]),
            "contributions": self.contributions,
            "shares": self.shares,
            "totals": self.totals,
        } | {f"flights.{part.name}": getattr(self.flights, part.name) for part in fields(Flights)}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> Clock:
        """The clock that gave the arrays, bit by bit."""
        try:
            now_s, seen = (float(value) for value in np.asarray(arrays["times"], dtype=np.float64))
            flights = Flights(*(np.asarray(arrays[f"flights.{part.name}"]) for part in fields(Flights)))
            kept = {name: np.asarray(arrays[name]) for name in ("contributions", "shares", "totals")}
        except (KeyError, ValueError) as error:
            raise BadInput(
                f"a fleet's clock cannot be read from the checkpoint ({error}); start the run anew"
            ) from None
        return Clock(now_s, kept["contributions"], kept["shares"], seen, kept["totals"], flights)

    # -- who contributed ----------------------------------------------------------------------------------------

    def contributed(self, ids: Ids, since_s: Floats) -> Flags:
        """Whether device ids[i] contributed after since_s[i]. Quickest where ids are sorted."""
        if not len(self.contributions):
            return np.zeros(len(ids), dtype=bool)
        # The last contribution of a device stands just before where the next device would.
        last = self.contributions[np.searchsorted(self.contributions, (ids + 1) << TIME_BITS) - 1]
        return np.asarray(((last >> TIME_BITS) == ids) & ((last & _TIME) > since_s))

    def with_contributions(self, ids: Ids, at_s: Floats, separation_s: float, now_s: float) -> Ids:
        """`contributions` with some more, each at its at_s. Those too old to matter go once in a virtual hour."""
        kept = self.contributions
        if int(now_s // 3600) != int(self.now_s // 3600):
            kept = kept[(kept & _TIME) > now_s - separation_s]
        new = np.sort((ids << TIME_BITS) | np.ceil(at_s).astype(np.int64))
        return np.insert(kept, np.searchsorted(kept, new), new)

    # -- pace steering ------------------------------------------------------------------------------------------

    def retry_window_s(self, size: int, wanted: int, target_s: float, bounds_s: tuple[float, float]) -> float:
        """Over how long the devices of a fleet should spread their polls so that `wanted` come within `target_s`.

        Bonawitz et al., 2019, section 2.3: short where devices are few, so that they come together; long where they
        are many, so that they do not come all at once.
        """
        return float(np.clip(size * self.expected_share * target_s / wanted, *bounds_s))

    @property
    def expected_share(self) -> float:
        """Share of the polls that should bring a device now."""
        known = float(self.shares[self.hour])
        return self.seen if np.isnan(known) else known

    def learned(self, polled: int, came: int) -> tuple[Floats, float]:
        """`shares` and `seen` after a selection that began now: how many polls there were, and how many brought one."""
        if polled == 0:
            return self.shares, self.seen
        known = float(self.shares[self.hour])
        seen = (came + FIRST_GUESS) / (polled + 1)
        shares = self.shares.copy()
        shares[self.hour] = seen if np.isnan(known) else (1 - LEARNING) * known + LEARNING * seen
        return shares, seen

    @property
    def hour(self) -> int:
        """Of the virtual day, UTC: 0 to 23."""
        return int(self.now_s // 3600) % 24

    def total(self, name: str) -> int:
        return int(self.totals[TOTALS.index(name)])
