"""A window's rows as data: which cannot be used, which came twice, and whether as many came as usual.

In: the window's rows, the reference of the version that served, the habit. Out: findings for every scope, and what
later windows need of this one. Each check has a file of its own; here they are asked scope by scope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.drift import OVERALL
from monitoring.duplicates import duplicated, usual_duplicates
from monitoring.findings import Finding, MonitorPolicy, Share, risen
from monitoring.habit import Habit, SiteTold, tell_sites
from monitoring.readable import out_of_range, unreadable, usual_out_of_range
from monitoring.volume import volume

Mask = NDArray[np.bool_]

ENOUGH_WINDOWS = 3  # of traffic, which says better than the reference how often pictures come twice

WHAT = {
    "unreadable": "pictures cannot be read",
    "out of range": "pictures are beyond the accepted range",
    "duplicates": "pictures came before",
}


def check(
    rows: pd.DataFrame,
    readable: Mask,
    reference: Mapping[str, pd.DataFrame],
    habit: Habit,
    policy: MonitorPolicy,
) -> tuple[list[Finding], dict[str, SiteTold]]:
    """Findings overall first, then by site; and what the sites' rows were like.

    rows: of all sites, as TrafficLog.between returns them. readable [n]: the picture could be decoded.
    """
    broken = unreadable(rows, readable)
    known = rows["site"].isin(list(reference)).to_numpy()
    beyond = np.zeros(len(rows), dtype=bool)
    beyond[known] = out_of_range(rows[known].reset_index(drop=True), reference, policy.range_margin)
    twice = duplicated(rows)
    masks = {"unreadable": broken, "out of range": beyond, "duplicates": twice}
    usual = {
        "unreadable": {site: Share(0, len(table)) for site, table in reference.items()},
        "out of range": {site: usual_out_of_range(len(table)) for site, table in reference.items()},
        "duplicates": _usual_duplicates(reference, habit),
    }
    index = {str(site): place for site, place in rows.groupby("site").indices.items() if site in reference}
    everywhere = np.concatenate([*index.values(), np.zeros(0, dtype=np.int64)]).astype(np.int64)
    findings = []
    checks = len(masks) * (len(index) + 1)
    for scope, place in [(OVERALL, everywhere), *sorted(index.items())]:
        for monitor, mask in masks.items():
            now = Share(int(mask[place].sum()), len(place))
            sites = index if scope == OVERALL else [scope]
            before = sum((usual[monitor][site] for site in sites), Share(0, 0))
            if now.rows:
                findings.append(risen(monitor, scope, now, before, policy, checks, WHAT[monitor]))
    again = {str(site): int(twice[place].sum()) for site, place in rows.groupby("site").indices.items()}
    counts = {str(site): len(own) for site, own in rows.groupby("site")}
    findings += volume(float(rows["at"].min()), float(rows["at"].max()), counts, habit, policy)
    return findings, tell_sites(rows, again, habit)


def _usual_duplicates(reference: Mapping[str, pd.DataFrame], habit: Habit) -> dict[str, Share]:
    """Of the windows before; of the reference, where there are too few of them."""
    usual = {}
    for site, table in reference.items():
        told = [window.sites[site] for window in habit.past if site in window.sites]
        seen = Share(sum(each.duplicates for each in told), sum(each.rows for each in told))
        usual[site] = seen if len(told) >= ENOUGH_WINDOWS else usual_duplicates(table)
    return usual


def told_of(findings: Sequence[Finding]) -> list[Finding]:
    """What a window's row keeps: everything overall, and of the sites what is odd."""
    return [finding for finding in findings if finding.scope == OVERALL or finding.odd]
