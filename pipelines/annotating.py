"""Asking the sites for labels, and waiting for people: the same jobs again say how far their desks are.

An oracle answers at once. People take hours, so the question is repeated every few seconds until nothing is pending
or the patience is over; a loop that is killed meanwhile asks the same again and finds every vote that was made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.federated.engines.engine import Engine
from pipelines.federated.jobs import AnnotateAnswer, AnnotateJob, Counts
from pipelines.summarize import ask_all

LOG = logging.getLogger("fedloop")

ASK_EVERY_S = 3.0
TELL_EVERY_S = 60.0


@dataclass(frozen=True)
class Annotated:
    """histogram: [k, classes] of the labels there are, over all sites; bought: of the rows that were asked for; new:
    that came in by this call.
    """

    histogram: Counts
    bought: int
    new: int
    pending: int


def annotated(engine: Engine, jobs: Mapping[str, AnnotateJob], patience_s: float) -> Annotated:
    """What the sites' annotators have said when nothing is pending any more, or after patience_s (0: ask once)."""
    began = told = time.monotonic()
    first: int | None = None
    last = -1
    while True:
        asked = time.monotonic()
        answers = ask_all(engine, jobs, AnnotateAnswer).values()
        bought, pending = sum(each.bought for each in answers), sum(each.pending for each in answers)
        if first is None:
            first = bought - sum(each.new for each in answers)
        took, waited = time.monotonic() - asked, time.monotonic() - began
        if pending == 0 or waited >= patience_s:
            break
        if last < 0 or (pending != last and time.monotonic() - told >= TELL_EVERY_S):
            LOG.info("label: %d rows wait for people at the desk, %d have a label", pending, bought)
            told, last = time.monotonic(), pending
        # Large sites take their time to answer, and have other things to do than this.
        time.sleep(min(max(ASK_EVERY_S, 5 * took), max(patience_s - waited, 0.0)))
    if pending and patience_s:
        LOG.warning("label: after %.0f s %d rows still have no label; going on with %d", waited, pending, bought)
    return Annotated(np.sum([each.histogram for each in answers], axis=0), bought, bought - first, pending)
