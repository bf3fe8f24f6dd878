"""Telling Prefect that a model drifted: the decision's row comes first, the event second.

In comes a decision that lies in the log database; out goes an event that starts the retraining. Prefect's own
`emit_event` loses an event silently while the server is down; this one says so, and the row waits to be told again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from monitoring import alarm
from monitoring.database import connect
from pipelines.settings import Settings

EVENT = "fedloop.drift.confirmed"
GRACE_S = 120  # how long a run may take from being picked up to its first step before its slot is given away
LOG = logging.getLogger("fedloop")


def resource(settings: Settings) -> str:
    """The name under which this model's events go."""
    return f"fedloop.model.{settings.model_name}"


def announce(settings: Settings, decision: alarm.Decision, patience_s: float = 10.0) -> bool:
    """Have the decision's retraining started; True when Prefect has the event, and then the row says `emitted`.

    False leaves the row as it is: the reconcile flow announces it later.
    """
    # NaN is not JSON, and the server refuses what is not.
    evidence = json.loads(json.dumps(dict(decision.evidence)), parse_constant=lambda _: None)
    event = {
        "id": str(uuid4()),  # one id for all tries: the server drops what it has seen
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": resource(settings), "prefect.resource.name": settings.model_name},
        "payload": evidence | {"decision": decision.decision, "cause": decision.cause, "task": settings.task_name},
    }
    address = settings.url("prefect") + "/api/events"
    tries = Retrying(
        stop=stop_after_delay(patience_s),
        wait=wait_exponential(0.2, max=2.0),
        retry=retry_if_exception_type((httpx.TransportError, httpx.HTTPStatusError)),
        reraise=True,
    )
    try:
        tries(_post, address, event)
    except (httpx.HTTPError, RetryError) as error:
        LOG.warning("decision %d was not announced at %s and waits: %s", decision.decision, address, error)
        return False
    engine = connect(settings.database_url)
    alarm.emitted(engine, decision.decision)
    engine.dispose()
    return True


def _post(address: str, event: Mapping[str, Any]) -> None:
    httpx.post(address, json=[event], timeout=5, trust_env=False).raise_for_status()
