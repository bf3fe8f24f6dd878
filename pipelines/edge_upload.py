"""What sites predicted without a network, on its way to the service: in batches, and each row once.

In goes a local log (pipelines/edge.py); a segment of it goes away when the service has said of every row that it is
logged. A row whose answer was lost is sent again, and the service, which takes a row once by its id, says the same. A
row that the service refuses goes back into the local log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from models.errors import BadInput, Missing
from monitoring.spool import Record, Spool
from pipelines.serving_wire import prediction_id

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits after failures; as many tries as there are."""
PATIENCE_S = 300.0
"""A service that asks for a longer pause is left alone: the same command another day goes on."""
TIMEOUT_S = 30.0

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_JSON = {"Content-Type": "application/json"}


@dataclass
class Uploaded:
    """rows: logged by the service. refused: by prediction id, the row's file and the reason. waiting: bytes left."""

    rows: int = 0
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    waiting: int = 0


def connect(url: str, token: str) -> httpx.Client:
    """A client for the service at an address.

    Raises:
        BadInput: it is no address.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)
    except httpx.InvalidURL as error:
        raise BadInput(f"the address {url!r} is none ({error})") from error
    if client.base_url.scheme not in ("http", "https") or not client.base_url.host:
        raise BadInput(f"the address {url!r} is none; it looks like https://fedloop.example:8080")
    return client


def upload(log: Path, client: httpx.Client, tell: Callable[[Uploaded], None]) -> Uploaded:
    """Send all that waits in a local log, oldest first. tell: called before each batch.

    It may be killed anywhere and called again.

    Raises:
        Missing: there is no such log, it cannot be written, or the service does not answer: what it has not logged
            stays.
        BadInput: the service takes nothing from this sender.
    """
    if not log.is_dir():
        raise Missing(f"there is no local log at {log}; name the folder that `fedloop edge predict --log` was given")
    spool, done = Spool(log), Uploaded()

    def take(rows: list[Record]) -> None:
        refused = []
        done.waiting = spool.size_bytes()
        tell(done)
        for row, said in zip(rows, _offer(client, rows), strict=True):
            if said["status"] == "logged":
                done.rows += 1
            elif (key := prediction_id(row["site"], row["request_id"])) not in done.refused:
                done.refused[key] = str(row.get("file", "")), str(said.get("reason", ""))
                refused.append(row)
        if refused:
            spool.append(refused)  # before the segment that they come from goes

    try:
        spool.drain(take)
    except OSError as error:
        raise Missing(f"the local log {log} cannot be written ({error.strerror}); nothing of it is lost") from error
    finally:
        spool.seal()
    done.waiting = spool.size_bytes()
    return done


def _offer(client: httpx.Client, rows: Sequence[Record]) -> list[Mapping[str, Any]]:
    """What the service says of each row."""
    # The file's name stays here: people call files after patients.
    sent = [{name: value for name, value in row.items() if name != "file"} for row in rows]
    body = json.dumps({"predictions": sent})
    problem, wait_s = "", 0.0
    for backoff_s in BACKOFF_S:
        time.sleep(wait_s)
        try:
            said = client.post("/predictions", content=body, headers=_JSON)
        except httpx.TransportError as error:
            problem, wait_s = f"{type(error).__name__}: {error}".rstrip(": "), backoff_s
            continue
        if said.status_code == 200:
            return _read(said, rows)
        if said.status_code == 413 and len(rows) > 1:
            half = len(rows) // 2
            return [*_offer(client, rows[:half]), *_offer(client, rows[half:])]
        problem = _sentence(said)
        if said.status_code == 413:
            return [{"status": "refused", "reason": problem}]
        if said.status_code not in _AGAIN:
            raise BadInput(f"the service at {client.base_url} takes nothing: {problem}")
        after = said.headers.get("retry-after", "")
        wait_s = max(backoff_s, float(after) if after.isdigit() else 0.0)
        if wait_s > PATIENCE_S:
            break
    raise Missing(
        f"the service at {client.base_url} takes nothing now ({problem}); what it has not logged stays, "
        "and the same command goes on with it"
    )


def _read(said: httpx.Response, rows: Sequence[Record]) -> list[Mapping[str, Any]]:
    """The entries of an answer, which is the service's own and not that of a hotel's login page."""
    try:
        found: list[Mapping[str, Any]] = said.json()["predictions"]
        ids = [prediction_id(row["site"], row["request_id"]) for row in rows]
        told = zip(ids, found, strict=True)
        if all(
            each["status"] == "refused" or (each["prediction_id"], each["status"]) == (i, "logged") for i, each in told
        ):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise Missing(f"what answers at {said.url} is no fedloop service; nothing is taken for uploaded")


def _sentence(said: httpx.Response) -> str:
    try:
        return str(said.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{said.status_code} {said.reason_phrase}"
