"""Rows of a log on which two versions predicted, one of them beside the other."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from models.quality import QUALITY_COLUMNS
from monitoring.database import PREDICTIONS, SHADOW_PREDICTIONS
from monitoring.traffic import Label, TrafficLog

Row = tuple[bool, int | None, int, int | None]
"""Whether the new one answered; what it said (None: it failed, and the old one answered); what the old one said; the
label."""


def fill(log: TrafficLog, rows: list[Row], new: int, old: int, slower: float | None = None) -> None:
    values, beside, labels = [], [], []
    for number, (by_new, said, before, label) in enumerate(rows):
        by_new = by_new and said is not None
        name = str(uuid.uuid4())
        values.append(
            {
                "prediction_id": name, "request_id": None, "site": "s", "at": 1.0, "image_hash": "0" * 32,
                "model_version": new if by_new else old, "prediction": said if by_new else before,
                "confidence": 1.0, "probabilities": [1.0], **dict.fromkeys(QUALITY_COLUMNS, 0.5),
            }
        )  # fmt: skip
        beside.append(
            {
                "prediction_id": name, "model_version": old if by_new else new,
                "prediction": before if by_new else said, "probabilities": [], "at": 2.0,
                "slower": slower and (slower + 0.001 * number) ** (-1 if by_new else 1),
            }
        )  # fmt: skip
        labels += [] if label is None else [Label(name, label, "clinic", 3.0)]
    if values:
        with log.engine.begin() as connection:
            connection.execute(sa.insert(PREDICTIONS), values)
            connection.execute(sa.insert(SHADOW_PREDICTIONS), beside)
        log.label_all(labels)
