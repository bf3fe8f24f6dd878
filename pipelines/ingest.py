"""Raw rows in, validated content-addressed snapshots out; what is refused goes to quarantine with its reason.

This runs at the site. Rows that an earlier snapshot already holds are passed over, so ingesting the same source
again creates nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.errors import BadInput
from models.images import content_hash, encode_png, read_image
from models.quality import QUALITY_COLUMNS, quality
from models.task import Rows, Task
from pipelines.federated.files import digest
from pipelines.federated.store import Manifest, SiteStore, Split


@dataclass(frozen=True)
class Ingested:
    """snapshots: what the site now has of this split, oldest first; the rest says what this call did."""

    snapshots: tuple[str, ...]
    new_rows: int
    known_rows: int
    quarantined: int
    reused: bool


def ingest(
    store: SiteStore, task: Task, rows: Rows, split: Split, source: str, parents: Sequence[str] = ()
) -> Ingested:
    """Validate a source and keep its new rows as one snapshot of the site.

    parents: snapshots of this split that the new one follows; their rows count as known.

    Raises:
        BadInput: the source is empty, or not one of its rows is good.
    """
    if len(rows) == 0:
        raise BadInput(f"site {store.site}: the source {source!r} has no rows")
    table = _read(rows, task)
    refused = _validate(table, rows.labels, task)
    store.refuse(source, refused)
    good = table[~table["row"].isin(refused["row"])]
    if good.empty:
        raise BadInput(
            f"site {store.site}: all {len(table)} rows of {source!r} are bad, nothing was ingested; "
            f"the first: row {refused['row'].iloc[0]}: {refused['reason'].iloc[0]}"
        )
    known = set(store.rows(list(parents), split)["row_id"]) if parents else set()
    new = good[~good["row_id"].isin(known)].sort_values("row_id", ignore_index=True)
    known_rows = len(good) - len(new)
    if new.empty:
        return Ingested(tuple(parents), 0, known_rows, len(refused), reused=True)
    labelled = new.dropna(subset=["label"])
    store.deposit(dict(zip(labelled["row_id"], labelled["label"].astype("int64"), strict=True)))
    content = new[["row_id", "png", *QUALITY_COLUMNS]]
    name = digest(task.name, store.site, split, list(new["row_id"]))
    reused = store.has(name)
    if not reused:
        manifest = Manifest(
            id=name,
            task=task.name,
            site=store.site,
            split=split,
            source=source,
            rows=len(content),
            quarantined=len(refused),
            schema={str(column): str(kind) for column, kind in content.dtypes.items()},
            sha256="",
            parent=parents[-1] if parents else None,
        )
        store.write(manifest, content)
    return Ingested((*parents, name), len(new), known_rows, len(refused), reused)


def _read(rows: Rows, task: Task) -> pd.DataFrame:
    """One line per raw row: row, problem (or None), row_id, png, label and the quality columns."""
    lines: list[dict[str, Any]] = []
    arrays = []
    for number, image in enumerate(rows.images):
        line: dict[str, Any] = {"row": number, "problem": None, "row_id": None, "png": None}
        try:
            arrays.append(read_image(image, task.input))
            line["png"] = encode_png(arrays[-1])
            line["row_id"] = content_hash(line["png"])
        except BadInput as error:
            line["problem"] = str(error)
        lines.append(line)
    table = pd.DataFrame(lines)
    table["label"] = [_label_number(label) for label in rows.labels]
    readable = table["problem"].isna()
    table[list(QUALITY_COLUMNS)] = np.nan
    if arrays:
        table.loc[readable, list(QUALITY_COLUMNS)] = quality(np.stack(arrays)).to_numpy()
    return table


def _label_number(label: Any) -> float:
    """NaN where nobody has said; a label that is there but is no number is an unknown one (-1), not a missing one."""
    if label is None:
        return float("nan")
    try:  # not pandas.to_numeric: one complex number among the labels would garble the others
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        return -1.0
    return number if np.isfinite(number) else -1.0


def _validate(table: pd.DataFrame, labels: Sequence[Any], task: Task) -> pd.DataFrame:
    """row, reason of every row that must not go on, by a pandera schema checked as a whole.

    labels: as the source has them, for the reasons.
    """
    import pandera.pandas as pa

    classes = len(task.classes)
    readable = table[table["problem"].isna()].set_index("row")
    schema = pa.DataFrameSchema(
        {
            "label": pa.Column(
                float,
                pa.Check(lambda s: s.isin(range(classes)), name=f"unknown label; known are 0 to {classes - 1}"),
                nullable=True,
                coerce=True,
            ),
            **{
                column: pa.Column(float, pa.Check.in_range(0.0, 4.0, name=f"{column} out of range"))
                for column in QUALITY_COLUMNS
            },
        }
    )
    refused = table[table["problem"].notna()]
    reasons: dict[int, str] = dict(zip(refused["row"], refused["problem"], strict=True))
    try:
        schema.validate(readable, lazy=True)
    except pa.errors.SchemaErrors as failures:
        for case in failures.failure_cases.itertuples():
            if case.index is not None and not pd.isna(case.index):
                found = repr(labels[int(case.index)]) if case.column == "label" else case.failure_case
                reasons.setdefault(int(case.index), f"{case.check} ({case.column} is {found})")
    # Among the good rows only: the twin of a row that was refused for its label is nobody's duplicate.
    good = readable[~readable.index.isin(list(reasons))]
    reasons |= {int(row): "a duplicate of an earlier row" for row in good.index[good["row_id"].duplicated()]}
    return pd.DataFrame(
        {"row": list(reasons), "reason": list(reasons.values())}, columns=["row", "reason"]
    ).sort_values("row", ignore_index=True)
