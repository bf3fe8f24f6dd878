"""Reported windows as the monitor writes them, made up: which column of which scope moved, in rows of WINDOWS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from monitoring.database import WINDOWS

ROWS = 100
QUIET = ("brightness", "contrast", "embedding_distance", "prediction")


def column(name: str, moved: bool = False, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A column like the reference, or one with nearly all its rows in its lowest bin."""
    shares = np.full(10, 0.1)
    if moved:
        shares = np.array([0.91, *[0.01] * 9])
    counts = np.random.default_rng([seed, *name.encode()]).multinomial(ROWS, shares)
    ratio = 7.1 if moved else 0.4
    told = {
        "column": name, "what": name.replace("_", " "), "value": ratio * 0.2, "threshold": 0.2, "ratio": ratio,
        "was": 0.32, "now": 0.10 if moved else 0.32, "spread": None if name == "prediction" else 0.8,
        "tally": {
            "counts": [*counts.tolist(), 0], "expected": [*[0.1] * 10, 0.0], "worth": 80.0, "limit": 2000.0,
            "ordered": name != "prediction",
        },
    }  # fmt: skip
    return told | values


def report(
    engine: sa.Engine,
    moved: Mapping[str, tuple[str, ...] | Mapping[str, Mapping[str, Any]]] | None = None,
    version: int = 1,
    mix: Mapping[str, int] | None = None,
    at: float = 0.0,
    scopes: tuple[str, ...] = ("overall", "site-1", "site-2"),
) -> int:
    """Write one window; its number. moved: per scope the columns that moved, and what else is to be said of them."""
    found: dict[str, Any] = {}
    with engine.begin() as connection:
        last = connection.execute(sa.select(sa.func.max(WINDOWS.c.to_seq))).scalar_one() or 1
        for scope in scopes:
            how = (moved or {}).get(scope, {})
            words = how if isinstance(how, Mapping) else {key: {} for key in how}
            names = dict.fromkeys((*QUIET, *words))
            columns = {
                name: column(name, name in words, seed=last * 7 + len(scope), **words.get(name, {})) for name in names
            }
            worst = max(each["ratio"] for each in columns.values())
            found[scope] = {"rows": ROWS, "odd": worst > 3, "worst": worst, "columns": columns}
        evidence = {"scopes": found, "mix": dict(mix or {"site-1": 50, "site-2": 50}), "notes": [], "rows": ROWS}
        inserted = connection.execute(
            sa.insert(WINDOWS).values(
                from_seq=last,
                to_seq=last + ROWS,
                rows=ROWS,
                started_at=at,
                ended_at=at + 1.0,
                model_version=version,
                odd=int(any(each["odd"] for each in found.values())),
                evidence=evidence,
            )
        )
        assert inserted.inserted_primary_key is not None
        return int(inserted.inserted_primary_key[0])


DARK = ("brightness", "contrast")
EVERYWHERE = dict.fromkeys(("overall", "site-1", "site-2"), DARK)
