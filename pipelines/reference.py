"""What a model version's traffic is compared with: its sites' reference rows, their thresholds, its centroids.

In: a version's number. Out: the rows that its release wrote at every site, as the monitor's statistics take them, and
thresholds calibrated on them once and kept beside them under `thresholds/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import FedloopError
from monitoring import drift
from monitoring.calibration import Calibration, calibrate
from pipelines import registry
from pipelines.settings import Settings


@dataclass(frozen=True)
class Reference:
    """What a version's traffic is compared with. centroids: of its data summary, None where that is lost."""

    sites: Mapping[str, pd.DataFrame]
    calibration: Calibration
    centroids: NDArray[np.float64] | None


def read_reference(settings: Settings, version: int) -> Reference:
    """The version's reference of every site that has one, with its thresholds (computed once, then read)."""
    files = sorted((settings.folder / "sites").glob(f"*/reference/{version}.parquet"))
    sites = {}
    for path in files:
        table = pd.read_parquet(path)
        if len(table):
            sites[path.parent.parent.name] = named(drift.clean(table), settings)
    if not sites:
        return Reference({}, Calibration({}), None)
    return Reference(sites, _calibration(settings, version, files, sites), _centroids(settings, version))


def _calibration(settings: Settings, version: int, files: list[Path], sites: Mapping[str, pd.DataFrame]) -> Calibration:
    name = sha256(settings.drift.model_dump_json().encode() + f"{settings.seed}".encode())
    for path in files:
        name.update(path.read_bytes())
    kept = settings.folder / "thresholds" / f"{version}-{name.hexdigest()[:16]}.json"
    if kept.is_file():
        return Calibration(**json.loads(kept.read_text()))
    made = calibrate(sites, settings.drift, settings.seed)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(made.as_json()))
    partial.replace(kept)
    return made


def _centroids(settings: Settings, version: int) -> NDArray[np.float64] | None:
    path = settings.folder / "models" / str(version) / "summary.npz"
    if not path.is_file():
        try:
            path = registry.fetch(settings, version) / "summary.npz"
        except FedloopError:
            return None  # the other columns are still watched, and the window's notes say so
    return np.asarray(np.load(path)["centroids"], dtype=np.float64) if path.is_file() else None


def named(frame: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Predictions by the names of their classes, which is how people read them."""
    names = {str(index): name for index, name in enumerate(settings.task.classes)}
    return frame.assign(prediction=frame["prediction"].map(lambda value: names.get(value, value)))
