"""The page that a site writes about its own errors: pictures, heat maps and the numbers that led to each cause.

In go what a site examined (site_diagnosis.py); out come `reports/errors-<version>.html` and the same as data, in the
site's own store. Nothing of it is in an answer.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from models.errors import BadInput
from models.explain import grad_cam, overlay
from models.images import Images
from models.quality import QUALITY_COLUMNS, quality
from pipelines.federated.causes import CAUSES, MISLABELLED, UNREADABLE, UNSEEN, by_cause
from pipelines.federated.error_page import (
    Neighbour,
    Page,
    ShownError,
    class_table,
    dump_errors,
    measured_rates,
    picture,
    render,
)
from pipelines.federated.files import write_atomically
from pipelines.federated.jobs import Counts, DiagnoseJob, Floats

if TYPE_CHECKING:
    from pipelines.federated.site import Site
    from pipelines.federated.site_diagnosis import Examined

SHOWN_NEAR = 4
"""Learned rows shown beside an error."""


def shown_errors(site: Site, job: DiagnoseJob, examined: Examined) -> tuple[ShownError, ...]:
    """The errors that the page explains: `job.explained` at most, the causes in turn, the surest errors first."""
    errors, found, names = examined.errors, examined.found, site.task.classes
    chosen = _in_turn(found.cause, errors.confidence, job.explained)
    images = errors.images[chosen]
    looked_at, overlooked = (_heat(site, job, images, each[chosen]) for each in (errors.prediction, errors.truth))
    return tuple(
        ShownError(
            site=site.name,
            source=str(errors.source[place]),
            truth=names[errors.truth[place]],
            prediction=names[errors.prediction[place]],
            confidence=float(errors.confidence[place]),
            cause=CAUSES[found.cause[place]],
            why=_why(site, examined, int(place)),
            picture=picture(errors.images[place]),
            looked_at=looked_at[number],
            overlooked=overlooked[number],
            neighbours=tuple(
                Neighbour(picture(examined.images[near]), names[examined.learned.labels[near]])
                for near in found.nearest[place][:SHOWN_NEAR]
            ),
        )
        for number, place in enumerate(chosen)
    )


def _in_turn(cause: Counts, confidence: Floats, most: int) -> Counts:
    """Places of `most` errors at most, taken from each cause in turn, the most confident first."""
    order = np.lexsort((-confidence, cause))
    turn = np.zeros(len(cause), dtype=np.int64)
    for each in range(len(CAUSES)):
        own = order[cause[order] == each]
        turn[own] = np.arange(len(own))
    return np.lexsort((cause, turn))[:most]


def _heat(site: Site, job: DiagnoseJob, images: Images, classes: Counts) -> list[str]:
    """Each picture's overlay; empty where the task's model has no convolution to read."""
    model = site.task.build_model()
    model.load_state_dict(job.parameters)
    try:
        heat = grad_cam(model, images, classes)
    except BadInput:
        return [""] * len(images)
    return [picture(overlay(image, warmth)) for image, warmth in zip(images, heat, strict=True)]


def _why(site: Site, examined: Examined, place: int) -> str:
    """The numbers that led to a cause, in a sentence."""
    found, names = examined.found, site.task.classes
    cause, truth = found.cause[place], names[examined.errors.truth[place]]
    if cause == UNREADABLE:
        column = int(found.worst_column[place])
        learned = examined.learned.quality[:, column]
        value = float(quality(examined.errors.images[place][None]).to_numpy()[0, column])
        return (
            f"Its {QUALITY_COLUMNS[column]} is {value:.3f}; the rows it learned from have {learned.min():.3f} to "
            f"{learned.max():.3f}, half of them around {np.median(learned):.3f} (p = {found.p_unreadable[place]:.3f})."
        )
    labels = Counter(names[label] for label in examined.learned.labels[found.nearest[place]])
    said = ", ".join(f"{count} “{name}”" for name, count in labels.most_common())
    near = f"The {labels.total()} nearest rows are labelled {said}"
    if cause == UNSEEN:
        return (
            f"{near}. The nearest one labelled “{truth}” is as far as for {found.p_unseen[place]:.1%} of the learned "
            "rows, and no other site has learned any in its cluster."
        )
    if cause == MISLABELLED:
        return (
            f"{near}, but true and learned rows around those say “{truth}” (by {found.doubt[place]:+.1f} of 3 votes)."
        )
    how = "" if found.agreeing[place] >= 0.5 else f"; one labelled “{truth}” is near (p = {found.p_unseen[place]:.2f})"
    if found.elsewhere[place] and found.agreeing[place] < 0.5:
        how = f"; other sites have learned rows labelled “{truth}” in its cluster"
    return f"{near}{how}."


def write_page(
    site: Site, job: DiagnoseJob, examined: Examined, by_class: Counts, shown: tuple[ShownError, ...]
) -> None:
    total = int(by_class.sum())
    unseen, unreadable = measured_rates(examined.calibration, job.rate)
    notes = [
        f"Of rows like those learned {job.rate:.0%} at most are called unseen, and as many unreadable; of the "
        f"{int(examined.calibration[0].sum())} rows that the model was right on, the tests would have called "
        f"{unseen:.0%} and {unreadable:.0%} so."
    ]
    if len(shown) < total:
        notes.append(f"{len(shown)} of {total} errors are explained one by one, the surest of each cause first.")
    if examined.left_out:
        notes.append(f"{examined.left_out} more errors were left out, to keep the time within bounds.")
    page = Page(
        title=f"{site.task.name} version {job.version} at {site.name}: where it errs, and why",
        rows=examined.rows,
        causes=by_cause(by_class),
        tables=(class_table(by_class, site.task.classes),),
        notes=tuple(notes),
        errors=shown,
    )
    write_atomically(site.store.report(job.version, "json"), dump_errors(shown))
    write_atomically(site.store.report(job.version), render(page).encode())
