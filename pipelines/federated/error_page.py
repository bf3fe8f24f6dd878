"""The error report as a page: counts of causes, then error by error what the model saw, went by and had learned from.

In go plain values, pictures among them as `data:` addresses; out comes one HTML file that loads nothing from anywhere.
A page with pictures of a site's rows is written at that site (pipelines/federated/site_diagnosis.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.images import data_uri, encode_png
from pipelines.federated.causes import CAUSES, MEANING, NEXT_STEP
from pipelines.federated.jobs import Counts

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Neighbour:
    """A training row near an error: its picture and the label that the model learned it with."""

    picture: str
    label: str


@dataclass(frozen=True)
class Shift:
    """How far a feature moved an answer (SHAP), with the feature's value in the row; None in a mean over rows."""

    feature: str
    by: float
    value: float | None = None


@dataclass(frozen=True)
class ShownError:
    """One wrong prediction, explained. looked_at, overlooked: where it spoke for the prediction and for the truth."""

    site: str
    source: str
    truth: str
    prediction: str
    confidence: float
    cause: str
    why: str
    picture: str = ""
    looked_at: str = ""
    overlooked: str = ""
    neighbours: tuple[Neighbour, ...] = ()
    shifts: tuple[Shift, ...] = ()


@dataclass(frozen=True)
class Table:
    """Counts of errors: a line each for a site or a class, a column a cause."""

    title: str
    lines: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Page:
    """Everything that a report says. notes: what was checked and what was left out, in sentences."""

    title: str
    rows: int
    causes: Mapping[str, int]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    errors: tuple[ShownError, ...] = ()
    shifts: tuple[Shift, ...] = ()  # the mean size of each feature's part in the answers, largest first


def picture(image: NDArray[np.uint8]) -> str:
    """uint8 [height, width, channels] as an address that holds the picture itself."""
    return data_uri(encode_png(image))


def render(page: Page) -> str:
    """The page as HTML. Whatever a task or a user named is escaped."""
    widest = max((abs(shift.by) for error in page.errors for shift in error.shifts), default=1.0) or 1.0
    return _template().render(
        page=page, total=sum(page.causes.values()), causes=CAUSES, meaning=MEANING, next_step=NEXT_STEP, widest=widest
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("error_page.html")


def class_table(by_class: Counts, names: tuple[str, ...]) -> Table:
    """by_class: [4, classes]."""
    return Table("by true class", {name: by_class[:, place].tolist() for place, name in enumerate(names)})


def measured_rates(calibration: Counts, rate: float) -> tuple[float, float]:
    """The shares (unseen, unreadable) of rows the model was right on whose p-value is in the bins up to the rate."""
    upto = max(1, round(rate * calibration.shape[1]))
    shares = calibration[:, :upto].sum(axis=1) / np.maximum(calibration.sum(axis=1), 1)
    return float(shares[0]), float(shares[1])


def dump_errors(errors: Iterable[ShownError]) -> bytes:
    """The errors as JSON, for one organisation whose report shows those of all its sites."""
    return json.dumps([asdict(error) for error in errors]).encode()


def load_errors(data: bytes) -> tuple[ShownError, ...]:
    """What `dump_errors` wrote."""
    return tuple(
        ShownError(
            **(
                each
                | {
                    "neighbours": tuple(Neighbour(**near) for near in each["neighbours"]),
                    "shifts": tuple(Shift(**shift) for shift in each["shifts"]),
                }
            )
        )
        for each in json.loads(data)
    )
