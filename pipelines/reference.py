"""What a model version's traffic is compared with: its sites' reference rows, their thresholds, its centroids.

In: a version's number. Out: the rows that its release wrote at every site, as the monitor's statistics take them, and
thresholds calibrated on them once and kept beside them under `thresholds/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import FedloopError
from monitoring import drift
from monitoring.calibration import Calibration, calibrate
from monitoring.estimate import NOTHING, Known, known_of_bins
from pipelines import registry
from pipelines.federated.files import write_atomically
from pipelines.settings import Settings


@dataclass(frozen=True)
class Reference:
    """What a version's traffic is compared with. centroids: of its data summary, None where that is lost. held_out: how
    often it was right how surely, on the rows it was judged on."""

    sites: Mapping[str, pd.DataFrame]
    calibration: Calibration
    centroids: NDArray[np.float64] | None
    held_out: Known = NOTHING


def read_reference(settings: Settings, version: int) -> Reference:
    """The version's reference of every site that has one, with its thresholds (computed once, then read)."""
    folder = settings.folder / "sites"
    found = [
        path for name in (version, accepted(version)) for path in sorted(folder.glob(f"*/reference/{name}.parquet"))
    ]
    files = list({path.parent: path for path in found}.values())
    sites = {}
    for path in files:
        table = pd.read_parquet(path)
        if len(table):
            sites[path.parent.parent.name] = named(drift.clean(table), settings)
    held_out = _held_out(settings, version)
    if not sites:
        return Reference({}, Calibration({}), None, held_out)
    return Reference(sites, _calibration(settings, version, files, sites), centroids_of(settings, version), held_out)


def accepted(version: int) -> str:
    """What a site calls the reference of a version that goes on in a changed world. Its first one stays beside it: to
    abstain from the pictures that it was made for would be wrong when the old world comes back."""
    return f"{version}-accepted"


def write_held_out(settings: Settings, version: int, bins: Sequence[Sequence[float]]) -> None:
    """Keep what the gate saw of a version's confidence, [3, bins]: its accuracy on traffic is estimated from it."""
    write_atomically(settings.folder / "confidence" / f"{version}.json", json.dumps(bins).encode())


def _held_out(settings: Settings, version: int) -> Known:
    path = settings.folder / "confidence" / f"{version}.json"
    return known_of_bins(json.loads(path.read_text())) if path.is_file() else NOTHING


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


def centroids_of(settings: Settings, version: int) -> NDArray[np.float64] | None:
    """Those of the version's data summary [k, d]; None where it cannot be read."""
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
