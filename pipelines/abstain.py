"""When a model had better not answer: a picture that is unreadable, unlike anything seen, or that it is unsure of.

In: the rows of a version's references, as the monitor has them. Out: limits, and for rows of traffic the reason to
abstain or none. How odd a row is, is one number: the farthest that one of its columns lies from the reference's
median, in units of how far the reference itself goes to that side. The limit on it is the conformal one (Vovk,
Gammerman & Shafer, Algorithmic Learning in a Random World, 2005): of rows like the reference about the stated share
abstain in all, not that share for each column.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import FedloopError
from models.images import Images
from models.quality import QUALITY_COLUMNS
from models.task import Task
from pipelines.settings import Settings

COLUMNS = (*QUALITY_COLUMNS, "embedding_distance", "confidence")
UNREADABLE, UNSEEN, UNSURE = "unreadable", "unseen", "unsure"
MINIMUM_ROWS = 100
"""Fewer reference rows say nothing of the rare ones: the version answers everything."""

_SMALLEST = 0.01  # of a column's reach: some are constant, such as the saturation of grey pictures
_PARENTS = 8
_REACH = 0.01  # the quantile, from either end, that is one unit away

Floats = NDArray[np.float64]
logger = logging.getLogger("fedloop.service")


@dataclass(frozen=True)
class Limits:
    """middle, below, above: [columns], the reference's median and its reach to either side; factor: how many times
    the reach is too far. centroids: [k, d] of the version's data summary."""

    middle: Floats
    below: Floats
    above: Floats
    factor: float
    centroids: NDArray[np.float32]

    def oddness(self, rows: Floats) -> Floats:
        """[n, columns]: how far each value of rows [n, columns] lies out; 1 is the reach of the reference."""
        away = rows - self.middle
        return np.where(away < 0, -away / self.below, away / self.above)


def calibrate(reference: pd.DataFrame, centroids: NDArray[np.floating], rate: float) -> Limits | None:
    """Limits by which of rows like the reference a share of about `rate` is abstained from; None: of too few rows.

    reference: COLUMNS. Its rows were learned from in part, so fresh ones are a little odder.
    """
    rows = reference[list(COLUMNS)].to_numpy(dtype=np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if rate <= 0 or len(rows) < MINIMUM_ROWS:
        return None
    low, middle, high = np.quantile(rows, (_REACH, 0.5, 1 - _REACH), axis=0)
    below, above = np.maximum(middle - low, _SMALLEST), np.maximum(high - middle, _SMALLEST)
    below[COLUMNS.index("embedding_distance")] = above[COLUMNS.index("confidence")] = math.inf
    made = Limits(middle, below, above, math.inf, np.asarray(centroids, dtype=np.float32))
    odd = np.sort(made.oddness(rows).max(axis=1))
    place = math.ceil((len(odd) + 1) * (1 - rate)) - 1
    factor = float(odd[min(place, len(odd) - 1)])
    return Limits(middle, below, above, factor, made.centroids)


def limits_of(settings: Settings, version: int, tags: Mapping[str, str], summary: Path) -> Limits | None:
    """The limits of a version, from what its release and those of its parents wrote at the sites.

    A reference holds the newest rows alone, so that after a dark month the parents' are the bright ones. summary: its
    file of centroids. None where there is nothing to go by.
    """
    line = [*json.loads(tags.get("fedloop.line", "[]"))[-_PARENTS:], version]
    files = [path for n in line for path in sorted((settings.folder / "sites").glob(f"*/reference/{n}.parquet"))]
    try:
        tables = [table for table in map(pd.read_parquet, files) if len(table)]
        if not tables or not summary.is_file():
            return None
        centroids = np.load(summary)["centroids"]
        return calibrate(pd.concat(tables, ignore_index=True), centroids, settings.service.abstain_rate)
    except (OSError, ValueError, KeyError) as error:
        logger.error("version %d abstains from nothing: its reference cannot be read: %s", version, error)
        return None


def reasons(limits: Limits, task: Task, images: Images, quality: Floats, confidence: Floats) -> list[str | None]:
    """For each row why to abstain, or None. quality: [n, 5]; confidence: [n], of the predicted class."""
    try:
        features = np.asarray(task.embed(images), dtype=np.float32)
    except FedloopError:
        return [None] * len(images)
    centroids = limits.centroids
    squares = (features**2).sum(axis=1)[:, None] - 2 * features @ centroids.T + (centroids**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares.min(axis=1), 0.0))
    odd = limits.oddness(np.column_stack([quality, distance, confidence]))
    worst = odd.argmax(axis=1)
    return [
        _named(COLUMNS[column]) if row[column] > limits.factor else None for row, column in zip(odd, worst, strict=True)
    ]


def _named(column: str) -> str:
    return {"embedding_distance": UNSEEN, "confidence": UNSURE}.get(column, f"{UNREADABLE}: {column}")
