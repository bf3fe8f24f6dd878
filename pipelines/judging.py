"""A window judged: how far it moved from its version's reference, what its data are worth, how often it is right.

In: the window's rows and the reference of the version that served it. Out: one value, from which the window's row in
the log database and its pages on the dashboard are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.embedding import nearest_centroid
from models.errors import FedloopError
from models.images import Images, decode_png
from monitoring import data_quality, drift, estimate, performance
from monitoring.dashboard import Dashboard
from monitoring.drift import COLUMNS, OVERALL, ScopeDrift
from monitoring.estimate import Estimate
from monitoring.findings import Finding
from monitoring.habit import Habit, SiteTold
from monitoring.health import Health, health
from monitoring.traffic import TrafficLog
from pipelines.reference import Reference, named, read_reference
from pipelines.serving_health import TICK_S
from pipelines.settings import Settings

LABELS_MAY_TAKE = 40  # windows back whose accuracy is looked at again, and whose labels correct an estimate


@dataclass
class Watcher:
    """What one look keeps open: the log, the dashboard, the references it has read, and what is usual so far."""

    settings: Settings
    log: TrafficLog
    dashboard: Dashboard
    habit: Habit
    references: dict[int, Reference] = field(default_factory=dict)
    drawn: bool = True  # onto the dashboard

    def reference(self, version: int) -> Reference:
        if version not in self.references:
            self.references[version] = read_reference(self.settings, version)
        return self.references[version]


@dataclass(frozen=True)
class Judged:
    """A window's rows that could be compared, what they are compared with, and what came of it."""

    version: int
    site: pd.Series
    current: pd.DataFrame
    reference: pd.DataFrame
    scopes: tuple[ScopeDrift, ...]  # overall first; empty where nothing could be compared
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]  # of the data's quality and volume
    sites: Mapping[str, SiteTold]
    estimate: Estimate
    health: Health

    @property
    def mix(self) -> dict[str, int]:
        return {str(site): int(count) for site, count in sorted(Counter(self.site).items())}

    def evidence(self) -> dict[str, Any]:
        """For the window's row."""
        return {
            "rows": len(self.site),
            "mix": self.mix,
            "notes": list(self.notes),
            "scopes": scopes_told(self.scopes),
            "quality": [asdict(finding) for finding in data_quality.told_of(self.findings)],
            "sites": {site: asdict(told) for site, told in self.sites.items()},
            "estimate": asdict(self.estimate),
            "health": self.health.figures(),
        }


def scopes_told(scopes: Sequence[ScopeDrift]) -> dict[str, Any]:
    """Every column of every scope, with the counts that the alarm adds up."""
    return {
        scope.scope: {
            "rows": scope.rows,
            "odd": scope.odd,
            "worst": scope.worst,
            "columns": {column.column: asdict(column) for column in scope.columns},
        }
        for scope in scopes
    }


def judge(watcher: Watcher, rows: pd.DataFrame, version: int) -> Judged:
    """Judge a window's rows, of which the version served most."""
    policy, reference = watcher.settings.drift, watcher.reference(version)
    served = rows["model_version"] == version
    known = served & rows["site"].isin(list(reference.sites))
    notes = []
    if not served.all():
        notes.append(f"{int((~served).sum())} rows of other versions are left out")
    if strangers := sorted(set(rows.loc[served & ~known, "site"])):
        notes.append(f"version {version} has no reference of {', '.join(map(str, strangers))}")
    if reference.sites and reference.centroids is None:
        notes.append(f"the embedding is not watched: the data summary of version {version} cannot be read")
    images, readable = _pictures(watcher, rows)
    own = rows[known].reset_index(drop=True)
    distances = np.full(len(rows), np.nan)
    if reference.centroids is not None and readable.any():
        distances[readable] = nearest_centroid(watcher.settings.task.embed(images), reference.centroids)[1]
    current = drift.clean(own.assign(embedding_distance=distances[known.to_numpy()]))
    current = named(current, watcher.settings)
    columns = [c for c in COLUMNS if c != "embedding_distance" or reference.centroids is not None]
    mixed, worth = drift.mixed_reference(reference.sites, Counter(own["site"]), policy.reference_rows)
    scopes: list[ScopeDrift] = []
    if len(own) < policy.minimum_rows:
        notes.append(f"only {len(own)} rows can be compared")
    else:
        scopes.append(drift.compare(OVERALL, current, mixed, worth, reference.calibration, policy, columns))
        for site, index in sorted(own.groupby("site").indices.items()):
            if len(index) >= policy.site_minimum_rows:
                there, here = reference.sites[str(site)], current.iloc[index]
                scopes.append(drift.compare(str(site), here, there, len(there), reference.calibration, policy, columns))
    findings, sites = data_quality.check(rows, readable, reference.sites, watcher.habit, watcher.settings.monitors)
    return Judged(
        version,
        own["site"],
        current,
        mixed,
        tuple(scopes),
        tuple(notes),
        tuple(findings),
        sites,
        _estimate(watcher, rows[served], version, scopes),
        health(watcher.log.engine, float(rows["at"].min()), float(rows["at"].max()) + TICK_S, version),
    )


def _estimate(watcher: Watcher, rows: pd.DataFrame, version: int, scopes: list[ScopeDrift]) -> Estimate:
    """Accuracy to expect of the rows, from what the gate saw and from the labels of the windows before."""
    first = int(rows["seq"].iloc[0])
    earliest = max(1, first - LABELS_MAY_TAKE * watcher.settings.drift.window_rows)
    recent = performance.labelled_answers(watcher.log.engine, earliest, first, version)
    odd = [scope for scope in scopes if scope.scope == OVERALL and scope.odd]
    outside = ""
    if odd:
        worst = max(odd[0].columns, key=lambda column: column.ratio)
        outside = f"{worst.what} is {worst.ratio:.1f} x its threshold away"
    confidence = rows["confidence"].to_numpy(dtype=np.float64)
    return estimate.estimate(confidence, watcher.reference(version).held_out, recent, outside)


def _pictures(watcher: Watcher, rows: pd.DataFrame) -> tuple[Images, NDArray[np.bool_]]:
    """The pictures that can be read, and which rows [n] these are."""
    task = watcher.settings.task
    pictures = {}
    for name in set(rows["image_hash"]):
        try:
            pictures[name] = decode_png(watcher.log.image(name), task.input)
        except FedloopError:
            continue
    readable = rows["image_hash"].isin(list(pictures)).to_numpy()
    images = [pictures[name] for name in rows.loc[readable, "image_hash"]]
    return (np.stack(images) if images else np.zeros((0, *task.input.shape), dtype=np.uint8)), readable
