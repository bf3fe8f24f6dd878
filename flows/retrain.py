"""The loop: ingest → adapt → label → train → evaluate → register → release → diagnose.

Read this file and you know the product. Each step is a function of `pipelines`; nothing else happens here.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.claims import claimed
from flows.console import tell_log
from pipelines import challenger, diagnose, gather, loop, release, steps
from pipelines.settings import load_settings

# The steps are idempotent by the content of their inputs, so a retry or a second run costs what is really new;
# Prefect's own cache would only know the arguments.
step: Any = task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=2)


@flow(name="retrain", flow_run_name="retrain-{task}-{cause}", persist_result=False)
def retrain(task: str = "digits", decision: int | None = None, cause: str = "manual") -> int | None:
    """Make a challenger and let the gate decide; returns the version that serves now, None where nothing was done.

    decision: the alarm's row that asked for this run; it is claimed first, so two runs never act on one decision.
    """
    settings = load_settings(task)
    tell_log()
    with claimed(settings, decision) as work:
        if work is None:
            return None
        if decision is not None and (waits := steps.on_its_way(settings)):
            work.finish(f"no second version is made: {waits}")
            return release.champion(settings)
        material = step(gather.gather, name="ingest")(settings, work.from_seq)
        if material.parent is not None and not material.new_rows:
            work.finish("nothing new to learn from; the champion stays")
            return int(material.parent)
        adapted = step(loop.adapt, name="adapt")(settings, material)
        labelled, trained = None, adapted
        found = step(challenger.spare_labels, name="spare")(settings, material, adapted)
        if found is None:
            labelled = step(loop.buy_labels, name="label")(settings, material, adapted)
            trained = step(loop.fit, name="train")(settings, material, labelled, adapted)
            found = step(challenger.judge_challenger, name="evaluate")(settings, material, trained)
        version = step(challenger.enter_registry, name="register")(settings, material, labelled, trained, found)
        outcome = step(challenger.decide, name="release")(settings, material, version, found.verdict, cause)
        step(diagnose.tell_causes, name="diagnose")(settings, version.number)
        work.finish(outcome)
        return release.champion(settings)
