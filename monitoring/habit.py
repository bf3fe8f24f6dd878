"""What is usual at each site, from the windows before: how many rows it sent, when, and how long it paused.

In: the newest rows of WINDOWS, a bounded number. Out: one value that volume, silence and duplicates ask. A window's
evidence holds what a later one needs of it (`told`), so that the log itself need not be read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sqlalchemy as sa

from monitoring.database import WINDOWS


@dataclass(frozen=True)
class SiteTold:
    """A site's rows of one window; times in seconds since the epoch.

    longest_gap_s: between two of its rows, the last one before the window included.
    """

    rows: int
    first_at: float
    last_at: float
    longest_gap_s: float
    duplicates: int


@dataclass(frozen=True)
class Past:
    """One earlier window."""

    ended_at: float
    sites: Mapping[str, SiteTold]


@dataclass(frozen=True)
class Habit:
    """Earlier windows, oldest first."""

    past: Sequence[Past]

    @property
    def sites(self) -> set[str]:
        return {site for window in self.past for site in window.sites}

    def last_at(self, site: str) -> float | None:
        """When the site's last row of these windows was taken."""
        return max((w.sites[site].last_at for w in self.past if site in w.sites), default=None)

    def with_window(self, window: Past, most: int) -> Habit:
        return Habit([*self.past, window][-most:])


def read_habit(engine: sa.Engine, windows: int) -> Habit:
    """The newest `windows` windows; those of an older release, which told less, are passed over."""
    w = WINDOWS.c
    newest = sa.select(w.ended_at, w.evidence["sites"].label("sites")).order_by(w.window.desc()).limit(windows)
    with engine.connect() as connection:
        found = connection.execute(newest).all()
    return Habit(
        [
            Past(row.ended_at, {site: SiteTold(**told) for site, told in row.sites.items()})
            for row in reversed(found)
            if row.sites
        ]
    )


def tell_sites(rows: pd.DataFrame, duplicates: Mapping[str, int], habit: Habit) -> dict[str, SiteTold]:
    """What later windows need of this one. duplicates: per site."""
    told = {}
    for site, own in rows.groupby("site"):
        name, at = str(site), np.sort(own["at"].to_numpy(dtype=np.float64))
        before = habit.last_at(name)
        times = at if before is None else np.concatenate([[min(before, at[0])], at])
        gap = float(np.diff(times).max()) if len(times) > 1 else 0.0
        told[name] = SiteTold(len(own), at[0].item(), at[-1].item(), gap, duplicates.get(name, 0))
    return told
