"""The log as Parquet files: `site=…/date=…/part-….parquet`, a row a prediction, with the label that came for it.

A file holds what one site predicted on one day (UTC, by event time) among a fixed run of seqs. So the same export
again writes the same files, labels that have come since go into them, and rows that the log has forgotten since stay
in them. Pictures are not exported; `image_hash` names them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from models.errors import BadInput
from monitoring.database import PREDICTIONS
from monitoring.traffic import LABEL_COLUMN, TrafficLog

CHUNK = 20_000
"""Seqs that are in memory at once, and in one file at most. Another number would make other files of the same log."""


@dataclass(frozen=True)
class Exported:
    rows: int
    files: int


def export(
    log: TrafficLog,
    folder: Path,
    first_day: date | None = None,
    last_day: date | None = None,
    sites: Sequence[str] = (),
    chunk: int = CHUNK,
) -> Exported:
    """Write the predictions of these days, both included, and of these sites (all) under `folder`.

    Raises:
        BadInput: the folder cannot be written, or the days are the wrong way round.
    """
    if first_day and last_day and last_day < first_day:
        raise BadInput(f"the last day ({last_day}) is before the first ({first_day})")
    where = [PREDICTIONS.c.at >= _midnight(first_day)] if first_day else []
    where += [PREDICTIONS.c.at < _midnight(last_day + timedelta(days=1))] if last_day else []
    where += [PREDICTIONS.c.site.in_(sites)] if sites else []
    rows, files = 0, set[Path]()
    for start in range(log.first_seq() // chunk * chunk, log.last_seq() + 1, chunk):
        frame = log.between(start, start + chunk, *where)
        frame["picture_bytes"] = frame["picture_bytes"].astype("Int64")
        days = (frame["at"] // 86_400).astype("int64").to_numpy().astype("datetime64[D]").astype(np.str_)
        for (site, day), own in frame.groupby([frame["site"].to_numpy(), days]):
            path = folder / f"site={quote(str(site), safe='')}" / f"date={day}" / f"part-{start:012d}.parquet"
            try:
                _write(path, own.drop(columns="site"))
            except OSError as error:
                raise BadInput(f"{path} cannot be written ({error.strerror or error}); name another folder") from error
            files.add(path)
        rows += len(frame)
    return Exported(rows, len(files))


def _write(path: Path, rows: pd.DataFrame) -> None:
    """Replace a file, whole or not at all; rows of it that the log has forgotten stay."""
    if path.exists():
        before = pd.read_parquet(path, partitioning=None)
        gone = before[~before["seq"].isin(rows["seq"])]
        if len(gone):
            gone = gone.astype({LABEL_COLUMN: "Int64", "picture_bytes": "Int64"})
            rows = pd.concat([gone, rows]).sort_values("seq")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # readers of a data set pass over such names
    rows.to_parquet(part, index=False, engine="pyarrow")
    os.replace(part, path)  # noqa: PTH105


def _midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
