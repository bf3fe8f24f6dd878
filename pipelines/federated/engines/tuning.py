"""How many processes and threads train a cohort fastest: measured once per model and machine, and remembered."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.federated.engines.fleet import FleetEngine
from pipelines.federated.files import keep_measurement, measurements
from pipelines.federated.jobs import Parameters
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.training import begin

LOG = logging.getLogger("fedloop.training")

Arrangement = tuple[int, int]
"""Processes, and torch's threads in each."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arrange(
    key: str,
    make: Callable[[int, int], FleetEngine],
    plan: TrainingPlan,
    initial: Parameters,
    remembered: Path,
) -> Arrangement:
    """The arrangement that brings a cohort back soonest: one thread, all threads, or a process a core.

    key: what the answer depends on; make(processes, threads): an engine over a cohort like the run's.
    """
    known = measurements(remembered).get(key)
    if isinstance(known, list) and len(known) == 2 and all(isinstance(number, int) for number in known):
        return known[0], known[1]
    n = cores()
    times = {a: _seconds(make(*a), plan, initial) for a in dict.fromkeys([(1, 1), (1, n), (n, 1)])}
    best = min(times, key=lambda arrangement: times[arrangement])
    told = ", ".join(f"{p} × {t}: {1e3 * seconds:.3g} ms" for (p, t), seconds in times.items())
    LOG.info("engine: %d processes × %d threads (measured a round of %s)", *best, told)
    keep_measurement(remembered, key, best)
    return best


def _seconds(engine: FleetEngine, plan: TrainingPlan, initial: Parameters) -> float:
    state = begin(plan, initial)
    with engine:
        engine.collect(plan, state)  # forks, fills caches
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            engine.collect(plan, state)
            taken.append(time.perf_counter() - start)
            if sum(taken) > 2.0:
                break
    return min(taken)
