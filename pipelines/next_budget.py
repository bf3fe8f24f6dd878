"""What the next labels should go to: the clusters in which a version met what it had never seen.

A diagnosis writes it; the labelling step that starts from that version reads it, and lets a part of its budget follow.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.embedding import nearest_centroid
from pipelines.federated.causes import UNSEEN
from pipelines.federated.files import digest, write_atomically
from pipelines.federated.jobs import Counts, Floats
from pipelines.summarize import DataSummary


@dataclass(frozen=True)
class NextBudget:
    """centroids: [k, d] of what was learned, in the task's embedding; unseen: [k] errors near each; share: of all."""

    centroids: Floats
    unseen: Counts
    share: float

    @property
    def id(self) -> str:
        return digest("next budget", self.centroids.tolist(), self.unseen.tolist(), self.share)

    def weights(self, summary: DataSummary) -> Floats:
        """[clusters of the summary]: the unseen errors that labels there may mend; they sum to `unseen` at most.

        Rows are counted by both clusterings by where the sites' first centroids fall: so no site is asked anew.
        """
        own, _ = nearest_centroid(summary.projected, summary.centroids)
        diagnosed, _ = nearest_centroid(summary.starts[:, : self.centroids.shape[1]], self.centroids)
        rows = np.zeros((len(summary.centroids), len(self.centroids)))
        np.add.at(rows, (own, diagnosed), summary.start_rows)
        return np.asarray(rows / np.maximum(rows.sum(axis=0), 1.0) @ self.unseen)


def next_budget(centroids: Floats, errors: Counts) -> NextBudget:
    """errors: [4, k] by cause and cluster, as a diagnosis counts them."""
    return NextBudget(centroids, errors[UNSEEN], float(errors[UNSEEN].sum() / max(errors.sum(), 1)))


def save(path: Path, wanted: NextBudget) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, centroids=wanted.centroids, unseen=wanted.unseen, share=wanted.share)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> NextBudget | None:
    """None where there is no such file: nobody has diagnosed that version."""
    if not path.is_file():
        return None
    kept = np.load(path)
    return NextBudget(kept["centroids"], kept["unseen"], float(kept["share"]))


def in_proportion(total: int, weights: Floats) -> Counts:
    """[k]: `total` in whole parts like the weights, by largest remainders; all 0 where the weights are."""
    if not weights.sum():
        return np.zeros(len(weights), dtype=np.int64)
    exact = total * weights / weights.sum()
    parts = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: total - int(parts.sum())]] += 1
    return np.asarray(parts)
