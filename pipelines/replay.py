"""Live traffic: pictures as the sites' cameras would take them, sent to the service over HTTP, and what came back.

In go a pool of labelled images, the sites' cameras and label mixes, and perhaps a drift; out come captures (the same
for the same arguments) and a tally of every answer and every failure by request id.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.camera import Camera, Corruption, capture
from models.errors import BadInput
from models.images import Images, content_hash, encode_png, read_image
from models.task import Rows, Task

SOURCE = "clinic"

_FEEDBACK_ROWS = 50
_TIMEOUT_S = 30.0
_EVERY_S = 0.001  # event time between two captures
_PNG = {"Content-Type": "image/png"}

TOKEN = "FEDLOOP_TOKEN"
"""The environment variable with the token to send, where the service needs one."""


@dataclass(frozen=True)
class Capture:
    """A picture taken at a site; label: the class that it shows; at: event time."""

    site: str
    png: bytes
    label: int
    request_id: str
    at: float


@dataclass(frozen=True)
class Answer:
    """What the service said of a capture. prediction: None where it left the answer to a person."""

    prediction_id: str
    prediction: int | None
    version: int


@dataclass
class Tally:
    """answered: by request id; failed: the reason by request id; labelled: delayed labels that were taken."""

    answered: dict[str, Answer] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    labelled: int = 0
    feedback_failed: list[str] = field(default_factory=list)


def captures(
    task: Task,
    rows: Rows,
    cameras: Mapping[str, Camera],
    label_mix: Mapping[str, ArrayLike],
    count: int,
    seed: int,
    corruption: Corruption | None = None,
    severity: float = 0.0,
    sites: Sequence[str] | None = None,
    start_at: float = 0.0,
    tag: str = "capture",
) -> list[Capture]:
    """`count` pictures: a site at random, a class by its label mix, an image of the class, camera, noise, drift.

    label_mix: by site, the weight of each class. sites: those that the drift hits; None: all.
    Rows without a label or that are no image of the task are never drawn.

    Raises:
        BadInput: the pool has no image that any site would show.
    """
    # Streams of their own, so that a drift changes the light and not which scenes are seen.
    pick, sense, drift = (np.random.default_rng([seed, *tag.encode(), stream]) for stream in range(3))
    pool, by_class = _pool(task, rows)
    names = sorted(cameras)
    chances = {name: _chances(label_mix[name], by_class) for name in names}
    where = pick.integers(len(names), size=count)
    labels = np.array([pick.choice(len(task.classes), p=chances[names[site]]) for site in where], dtype=np.int64)
    scenes = np.array([pick.choice(by_class[label]) for label in labels], dtype=np.int64)
    images = pool[scenes]
    for index, name in enumerate(names):
        if (here := where == index).any():
            images[here] = capture(cameras[name], images[here], sense)
    if corruption is not None:
        hit = np.array([sites is None or names[site] in sites for site in where], dtype=bool)
        if hit.any():
            images[hit] = corruption.apply(images[hit], severity, drift)
    return [
        Capture(names[site], encode_png(image), int(label), f"{tag}-{seed}-{i}", start_at + i * _EVERY_S)
        for i, (site, image, label) in enumerate(zip(where, images, labels, strict=True))
    ]


def replay(
    url: str, captures: Sequence[Capture], concurrency: int = 8, feedback_share: float = 0.0, patience_s: float = 0.0
) -> Tally:
    """Send every capture once. Nothing is retried but a refused connection, for up to `patience_s`.

    feedback_share: of so many answers, chosen by the hash of the picture, the clinic tells the truth afterwards.
    """
    return asyncio.run(_send(url, captures, concurrency, feedback_share, patience_s))


async def _send(
    url: str, captures: Sequence[Capture], concurrency: int, feedback_share: float, patience_s: float
) -> Tally:
    tally, waiting = Tally(), iter(captures)
    # Not httpx: it takes five times the processor time for a request, and shares two cores with the service.
    connector, timeout = aiohttp.TCPConnector(limit=concurrency), aiohttp.ClientTimeout(total=_TIMEOUT_S)
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, headers=headers) as client:

        async def work() -> None:
            truth: list[dict[str, object]] = []
            for one in waiting:
                answer = await _ask(client, one, tally, patience_s)
                if answer is not None and _share(one.png) < feedback_share:
                    said = {"prediction_id": answer.prediction_id, "label": one.label, "source": SOURCE, "at": one.at}
                    truth.append(said)
                if len(truth) == _FEEDBACK_ROWS:
                    await _tell(client, truth, tally)
                    truth = []
            if truth:
                await _tell(client, truth, tally)

        await asyncio.gather(*(work() for _ in range(min(concurrency, len(captures)))))
    return tally


def serving_version(url: str) -> int | None:
    """The version that the service at `url` answers with; None while it does not answer or has no champion."""
    # No proxy stands between a house and its service; reading all certificates costs 0.1 s, for plain http.
    with suppress(httpx.HTTPError, ValueError, KeyError):
        answer = httpx.get(url + "/readyz", timeout=5.0, trust_env=False, verify=False)
        return int(answer.raise_for_status().json()["model_version"])
    return None


async def _ask(client: aiohttp.ClientSession, capture: Capture, tally: Tally, patience_s: float) -> Answer | None:
    params = {"site": capture.site, "request_id": capture.request_id, "at": repr(capture.at)}
    give_up = time.monotonic() + patience_s
    while True:
        try:
            async with client.post("/predict/image", params=params, data=capture.png, headers=_PNG) as said:
                status, body = said.status, await said.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) and time.monotonic() < give_up:
                await asyncio.sleep(0.1)
                continue
            tally.failed[capture.request_id] = _reason(error)
            return None
        if status != 200:
            tally.failed[capture.request_id] = _said(status, body)
            return None
        row = json.loads(body)
        answer = Answer(row["prediction_id"], row["prediction"], row["model_version"])
        tally.answered[capture.request_id] = answer
        return answer


async def _tell(client: aiohttp.ClientSession, truth: list[dict[str, object]], tally: Tally) -> None:
    try:
        async with client.post("/feedback", json=truth) as said:
            status, body = said.status, await said.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        tally.feedback_failed.append(_reason(error))
        return
    if status == 200:
        tally.labelled += len(truth)
    else:
        tally.feedback_failed.append(_said(status, body))


def _said(status: int, body: bytes) -> str:
    return f"{status} {body[:300].decode(errors='replace')}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _share(png: bytes) -> float:
    """A number in [0, 1) that belongs to the picture."""
    return int(content_hash(png)[:8], 16) / 2**32


def _pool(task: Task, rows: Rows) -> tuple[Images, dict[int, NDArray[np.int64]]]:
    """The usable images and, by class, which of them show it."""

    def usable() -> Iterator[tuple[NDArray[np.uint8], int]]:
        for image, label in zip(rows.images, rows.labels, strict=True):
            if label is not None and 0 <= label < len(task.classes):
                with suppress(BadInput):
                    yield read_image(image, task.input), label

    found = list(usable())
    if not found:
        raise BadInput(f"none of the {len(rows)} rows is a labelled image of task {task.name}: nothing to replay")
    labels = np.array([label for _, label in found])
    return np.stack([image for image, _ in found]), {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}


def _chances(weights: ArrayLike, by_class: Mapping[int, object]) -> NDArray[np.float64]:
    weights = np.array(weights, dtype=np.float64)
    weights[[c for c in range(len(weights)) if c not in by_class]] = 0.0
    if weights.sum() <= 0:
        raise BadInput("the pool has no image of any class that the site's label mix names")
    return np.asarray(weights / weights.sum())
