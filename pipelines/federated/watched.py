"""What a monitor watches of a site's rows: the reference that stays here, and histograms of what came since.

In: jobs of the monitor. Out: a count, or counts by bin. The columns of a row (its quality, its distance to the data
summary, the model's answer and confidence) never leave; which rows are new the site knows itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from models.binning import count, hide_rare
from models.embedding import nearest_centroid
from models.errors import BadInput, Missing
from models.quality import QUALITY_COLUMNS
from pipelines.federated import jobs
from pipelines.federated.files import write_atomically
from pipelines.federated.scoring import class_probabilities
from pipelines.federated.watching import Watch

if TYPE_CHECKING:
    from pipelines.federated.site import Site


def write_reference(site: Site, job: jobs.ReferenceJob) -> jobs.ReferenceAnswer:
    table = _columns(site, job.snapshots, job.parameters, job.centroids)
    site.store.write_reference(job.version, table)
    return jobs.ReferenceAnswer(len(table))


def count_watched(site: Site, watch: Watch) -> jobs.DescribeAnswer:
    """Histograms of the reference (turn 0), or of the rows that came since, each counted in one turn.

    A turn may be asked again until its answer has been recorded.

    Raises:
        BadInput: the turn is over.
    """
    if watch.turn == 0:
        try:
            table = site.store.reference(watch.version)
        except Missing:
            table = pd.DataFrame()  # a site that joined later
    else:
        table = _columns(site, _new_snapshots(site, watch), watch.parameters, watch.centroids)
    histograms = {
        column: hide_rare(count(_numbers(table, column), edges), watch.smallest, column != "prediction")
        for column, edges in watch.edges.items()
    }
    rows = int(max((histogram.sum() for histogram in histograms.values()), default=0))
    return jobs.DescribeAnswer(rows, histograms)


def _columns(
    site: Site, snapshots: tuple[str, ...], parameters: jobs.Parameters, centroids: jobs.Floats
) -> pd.DataFrame:
    """One line per row of those snapshots: what the monitor's statistics take."""
    frames = []
    for split in ("evaluation", "train"):
        rows, images = site.images(snapshots, split)
        if not len(rows):
            continue
        probabilities = class_probabilities(site.task, parameters, images)
        _, distance = nearest_centroid(site.task.embed(images), centroids)
        frames.append(
            rows[list(QUALITY_COLUMNS)].assign(
                embedding_distance=distance,
                confidence=probabilities.max(axis=1),
                prediction=probabilities.argmax(axis=1),
            )
        )
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _numbers(table: pd.DataFrame, column: str) -> jobs.Floats:
    return table[column].to_numpy(dtype=np.float64) if column in table else np.zeros(0)


def _new_snapshots(site: Site, watch: Watch) -> tuple[str, ...]:
    """The snapshots of this turn, remembered until its answer has been recorded."""
    path = site.store.root / "counted" / f"{watch.version}.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"turn": 0, "now": [], "before": []}
    if watch.turn <= watch.recorded:
        raise BadInput(f"turn {watch.turn} of version {watch.version} is over: its answer has been recorded")
    # An answer that was lost on its way is given again, with what has come meanwhile.
    before = kept["before"] + (kept["now"] if kept["turn"] <= watch.recorded else [])
    known = {*watch.known, *before}
    now = [manifest.id for manifest in site.store.manifests() if manifest.id not in known]
    write_atomically(path, json.dumps({"turn": watch.turn, "now": now, "before": before}).encode())
    return tuple(now)
