"""`fedloop traffic`: replay a task's live pool at the running service, as in training or under a named drift."""

from __future__ import annotations

import time

from flows.console import say
from models.errors import BadInput
from pipelines import replay
from pipelines.gather import deposit_truth, site_plan
from pipelines.settings import Settings


def send_traffic(
    settings: Settings,
    drift: str,
    severity: str,
    requests: int,
    sites: list[str] | None,
    feedback: float,
    concurrency: int,
) -> bool:
    """Send and say what came back; False when a request failed.

    Raises:
        BadInput: an unknown drift, severity or site; the message names those there are.
        Missing: no service answers.
    """
    task, plan = settings.task, site_plan(settings)
    corruption, share = None, 0.0
    if drift:
        if drift not in task.corruptions:
            raise BadInput(f"task {task.name} knows no drift {drift!r}; it knows {', '.join(task.corruptions)}")
        corruption = task.corruptions[drift]
        share = corruption.strength(severity)
    unknown = set(sites or ()) - set(plan.sites)
    if unknown:
        raise BadInput(f"there is no site {', '.join(sorted(unknown))}; there are {', '.join(plan.sites)}")
    now, live = time.time(), task.load().live
    captures = replay.captures(
        task, live, plan.cameras, plan.label_mix, requests, int(now), corruption, share, sites or None,
        start_at=now, tag=f"traffic-{int(now)}",
    )  # fmt: skip
    deposit_truth(settings, captures)
    tally = replay.replay(settings.url("service"), captures, concurrency=concurrency, feedback_share=feedback)
    light = f"{drift}, {severity}" if drift else "as in training"
    say(f"traffic: {len(tally.answered)} of {requests} pictures ({light}) answered, {len(tally.failed)} failed")
    for reason in sorted(set(tally.failed.values()))[:3]:
        say(f"traffic: {reason}")
    return not tally.failed
