"""For tests of sites with a bad network: a champion with its exported graph, its service, and rows of a local log."""

from __future__ import annotations

import base64
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from live_service import Serving, register_untrained, serving, settings_in

from models.images import encode_png
from monitoring.spool import Record, Spool
from monitoring.traffic import TrafficLog
from pipelines import release
from pipelines.settings import Settings


@dataclass
class EdgeHouse:
    settings: Settings
    served: Serving
    log: TrafficLog

    def logged(self, from_seq: int = 0) -> dict[str, dict[str, Any]]:
        """Rows of the traffic log by prediction id; there is one of each."""
        rows = self.log.between(from_seq, 10**9)
        assert rows["prediction_id"].is_unique
        return {row["prediction_id"]: row for row in rows.to_dict("records")}  # type: ignore[misc]


@contextmanager
def edge_house(folder: Path, empty_registry: Path) -> Iterator[EdgeHouse]:
    """A service whose champion is version 2; version 1 served before."""
    settings = settings_in(folder, empty_registry)
    for seed in (4, 5):
        release.promote(settings, register_untrained(settings, seed).number, "test")
    log = TrafficLog.open(settings.database_url, settings.images)
    with serving(settings) as served:
        served.ready()
        yield EdgeHouse(settings, served, log)
    log.close()


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=(8, 8, 1), dtype=np.uint8)


def row(number: int = 0, **other: Any) -> Record:
    """A row of a local log that the service takes."""
    shares = np.random.default_rng(number).dirichlet(np.ones(10)).round(6)
    shares[0] += 1 - shares.sum()
    made: Record = {
        "model": "digits",
        "model_version": 2,
        "site": "clinic",
        "request_id": f"edge-{uuid.uuid4().hex}",
        "at": time.time(),
        "probabilities": shares.tolist(),
        "png": base64.b64encode(encode_png(picture(number))).decode(),
        "file": f"scan-{number}.png",
    }
    return made | other


def waiting(log: Path) -> list[Record]:
    """The rows of a local log, which stay there."""
    found: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(log, copy)
        Spool(copy).drain(found.extend)
    return found
