"""Rows for a traffic log, and databases that are away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import sqlalchemy as sa

from models.images import content_hash, encode_png
from monitoring.engines import engine_for
from monitoring.traffic import Prediction

NOW = 1_000_000.0


def prediction(number: int = 0, at: float = NOW, site: str = "site-1", name: str | None = None) -> Prediction:
    """Row r-<number> on one of 256 pictures."""
    png = encode_png(np.full((8, 8, 1), number % 256, dtype=np.uint8))
    return Prediction(
        prediction_id=name or str(uuid.uuid4()),
        request_id=f"r-{number}",
        site=site,
        at=at,
        model_version=1,
        png=png,
        image_hash=content_hash(png),
        prediction=number % 10,
        confidence=0.5,
        probabilities=[0.5, 0.5],
        quality=(0.1, 0.2, 0.3, 0.4, float(number)),
        logged_at=at,
    )


@contextmanager
def held(url: str) -> Iterator[None]:
    """Nobody else can write predictions to that database meanwhile."""
    engine = engine_for(url)
    with engine.connect() as other:
        if engine.dialect.name == "sqlite":
            other.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            other.execute(sa.text("SELECT pg_advisory_xact_lock(7240311)"))
        try:
            yield
        finally:
            other.rollback()
    engine.dispose()
