"""Telling people of decisions: through Apprise, by a webhook, or however the caller sends; each once where it can be.

In: the decisions of the last day, and channels. Out: rows in NOTIFICATIONS, one for each decision and channel that
was told. What could not be delivered has no row and is tried again by the next call; nothing here ever raises because
somebody did not answer. A receiver that says yes and whose process dies before the row is written is told twice:
`decision` in the message is the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from models.errors import BadInput
from monitoring.alarm import Decision, decisions
from monitoring.database import NOTIFICATIONS, insert_new
from monitoring.policy import AlarmPolicy

LOG = logging.getLogger("fedloop")
NEWS_S = 86_400.0
"""A decision that nobody could be told of for so long is no news any more."""
_TRIES, _TIMEOUT_S = 3, 5.0
_CALLS_FOR: Mapping[str, str] = {
    "retrain": "A retraining starts by itself once enough new rows have come.",
    "labels": "Nothing is retrained. Labels of recent rows would tell what it is; then: {ack}",
    "person": "Nothing is retrained until somebody has looked; then: {ack}",
}


@dataclass(frozen=True)
class Message:
    """A decision as people read it; payload: as programs do."""

    title: str
    body: str
    payload: Mapping[str, Any]


Send = Callable[[Message], None]
"""Raises where the message was not taken."""


def message(decision: Decision, model_name: str) -> Message:
    ack = f'fedloop alarms ack {decision.decision} --reason "..."'
    evidence = decision.evidence
    body = f"{decision.sentence}.\n{_CALLS_FOR[decision.answer].format(ack=ack)}"
    payload = {
        "model": model_name,
        "decision": decision.decision,
        "cause": decision.cause,
        "answer": decision.answer,
        "severity": decision.severity,
        "probable_cause": evidence.get("probable_cause"),
        "sentence": decision.sentence,
        "sites": evidence.get("sites", []),
        "windows": evidence.get("windows", []),
        "created_at": decision.created_at,
    }
    return Message(f"{model_name}: {decision.severity}, decision {decision.decision}", body, payload)


def channels(policy: AlarmPolicy) -> dict[str, Send]:
    """Those that the settings name. An address may hold a password, so a channel goes by its kind and a digest."""
    found: dict[str, Send] = {_named("apprise", url): _by_apprise(url) for url in policy.notify}
    if policy.webhook:
        found[_named("webhook", policy.webhook)] = _by_webhook(policy.webhook)
    return found


def deliver(
    engine: sa.Engine, model_name: str, ways: Mapping[str, Send], now: float | None = None, pause_s: float = 0.5
) -> list[str]:
    """Tell every channel, at the same time, what it has not been told; a sentence for each that did not take it."""
    moment = time.time() if now is None else now
    recent = [one for one in decisions(engine) if one.created_at > moment - NEWS_S]
    if not recent or not ways:
        return []
    with engine.connect() as connection:
        told = {(row.decision, row.channel) for row in connection.execute(sa.select(NOTIFICATIONS))}

    def one_channel(name: str) -> list[str]:
        failed = []
        for decision in recent:
            if (decision.decision, name) in told:
                continue
            error = _tried(ways[name], message(decision, model_name), pause_s)
            if error is not None:
                failed.append(f"decision {decision.decision} could not be told by {name}: {error}; it is tried again")
                break  # the others would only wait for the same silence
            row = {"decision": decision.decision, "channel": name, "at": moment}
            with engine.begin() as connection:
                connection.execute(insert_new(engine, NOTIFICATIONS), row)
        return failed

    with ThreadPoolExecutor(len(ways)) as pool:
        # With the caller's context, in which Prefect keeps where its server is.
        running = [pool.submit(copy_context().run, one_channel, name) for name in ways]
        failures = [sentence for each in running for sentence in each.result()]
    for sentence in failures:
        LOG.warning("%s", sentence)
    return failures


def _tried(send: Send, text: Message, pause_s: float) -> str | None:
    """None when it was taken. The error's words may hold the address, so of a foreign one only the type is told."""
    for attempt in range(_TRIES):
        try:
            send(text)
            return None
        except Exception as error:
            why = str(error) if isinstance(error, BadInput) else type(error).__name__
        if attempt + 1 < _TRIES:
            time.sleep(pause_s * 2**attempt)
    return why


def _by_apprise(url: str) -> Send:
    def send(text: Message) -> None:
        import apprise

        kind = {"critical": apprise.NotifyType.FAILURE, "warning": apprise.NotifyType.WARNING}
        teller = apprise.Apprise()
        if not teller.add(url):
            raise BadInput("Apprise cannot read its address; see alarm.notify")
        severity = str(text.payload["severity"])
        if not teller.notify(text.body, title=text.title, notify_type=kind.get(severity, apprise.NotifyType.INFO)):
            raise BadInput("it did not take the message")

    return send


def _by_webhook(url: str) -> Send:
    def send(text: Message) -> None:
        import httpx

        answer = httpx.post(url, json=dict(text.payload), timeout=_TIMEOUT_S, trust_env=False)
        if answer.is_error:
            raise BadInput(f"it answered {answer.status_code}")

    return send


def _named(kind: str, address: str) -> str:
    return f"{kind}-{sha256(address.encode()).hexdigest()[:8]}"
