"""The load of `serving.py`, in a process of its own: so many connections, each asks again as soon as it is answered.

    python benchmarks/serving_load.py '{"port": 8080, "peer": "fedloop", "kind": "image", "seconds": 5, ...}'

Sockets and bytes alone, because a client with comfort takes more of two cores than the server that it measures. No
picture is sent twice, so that nothing that a server keeps by content is cheaper than in life. Prints one JSON object:
answers, refusals, latencies in ms. With `patience_s`, a connection that breaks is made anew and its request is sent
again under the same id, and the ids of what was answered are written to `answered`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.images import encode_png
from models.task import find_task


@dataclass
class Load:
    port: int
    peer: str
    kind: str
    seconds: float
    connections: int = 32
    task: str = "digits"
    tag: str = "t"
    pictures: int = 4000
    patience_s: float = 0.0
    answered: str = ""
    taken: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    latencies_s: list[float] = field(default_factory=list)
    next: int = 0
    until: float = 0.0


def bodies(load: Load) -> list[tuple[bytes, bytes]]:
    """Two halves of every body, between which the request's id stands where it is part of the body."""
    task = find_task(load.task)
    shape = task.input.shape
    chance = np.random.default_rng([*load.tag.encode()])
    # Smooth pictures with a little noise, as cameras take them: white noise would not compress at all.
    coarse = chance.random((load.pictures, 4, 4, shape[2]))
    rows, columns = np.linspace(0, 3, shape[0]).round().astype(int), np.linspace(0, 3, shape[1]).round().astype(int)
    images = coarse[:, rows][:, :, columns] * 200 + chance.integers(0, 40, (load.pictures, *shape))
    made = []
    for image in images.astype(np.uint8):
        if load.kind == "image":
            png = encode_png(image)
            made.append(
                (
                    json.dumps({"inputs": [base64.b64encode(png).decode()]}).encode() if load.peer == "mlflow" else png,
                    b"",
                )
            )
            continue
        pixels = np.round(image / 255.0, 4)
        if load.peer == "mlflow":
            made.append((json.dumps({"inputs": [pixels.tolist()]}).encode(), b""))
        else:
            text = json.dumps({"site": "bench", "pixels": pixels.tolist()})
            made.append((text[:-1].encode() + b', "request_id": "', b'"}'))
    return made


def request(load: Load, name: str, halves: tuple[bytes, bytes]) -> bytes:
    path, kind = "/predict", "application/json"
    body = halves[0] + name.encode() + halves[1] if halves[1] else halves[0]
    if load.peer == "mlflow":
        path = "/invocations"
    elif load.kind == "image":
        path, kind = f"/predict/image?site=bench&request_id={name}", "image/png"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection: asks, and asks again as soon as it is answered. asyncio's streams take twice the time."""

    def __init__(self, load: Load, made: list[tuple[bytes, bytes]], done: asyncio.Future[None]) -> None:
        self.load, self.made, self.done = load, made, done
        self.name, self.message, self.received = "", b"", b""
        self.began = self.give_up = 0.0

    def next(self) -> None:
        if time.perf_counter() >= self.load.until:
            self.transport.close()
            self.finish()
            return
        number, self.load.next = self.load.next, self.load.next + 1
        self.name = f"{self.load.tag}-{number}"
        self.message = request(self.load, self.name, self.made[number % len(self.made)])
        self.give_up = time.perf_counter() + self.load.patience_s
        self.ask()

    def ask(self) -> None:
        self.received, self.began = b"", time.perf_counter()
        self.transport.write(self.message)

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.message:
            self.ask()
        else:
            self.next()

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.received[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at : (head + b"\r").index(b"\r", at)])
        if len(self.received) < end + 4 + length:
            return
        now, status, load = time.perf_counter(), int(head[9:12]), self.load
        if status == 503 and now < self.give_up:
            self.transport.abort()  # the service closes it too; it is made anew, and asks then
            return
        load.latencies_s.append(now - self.began)
        if status == 200:
            load.taken[self.name] = json.loads(self.received[end + 4 :])["prediction_id"] if load.answered else ""
        else:
            load.refused += 1
        self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.again = asyncio.create_task(self.reconnect())

    async def reconnect(self) -> None:
        """What broke is sent again under the same id, as long as there is patience."""
        while time.perf_counter() < self.give_up:
            await asyncio.sleep(0.05)
            try:
                await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.load.port)
                return
            except OSError:
                continue
        self.load.refused += 1
        self.finish()


async def connection(load: Load, made: list[tuple[bytes, bytes]]) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    await loop.create_connection(lambda: Connection(load, made, done), "127.0.0.1", load.port)
    await done


async def run(load: Load) -> dict[str, Any]:
    made = bodies(load)
    began = time.perf_counter()
    load.until = began + load.seconds
    await asyncio.gather(*(connection(load, made) for _ in range(load.connections)))
    took = time.perf_counter() - began
    if load.answered:
        Path(load.answered).write_text(json.dumps(load.taken))
    ms = np.array(load.latencies_s) * 1000.0
    p50, p99 = np.percentile(ms, [50, 99]).tolist() if len(ms) else (float("nan"), float("nan"))
    return {
        "requests_s": len(load.taken) / took,
        "p50_ms": p50,
        "p99_ms": p99,
        "answered": len(load.taken),
        "refused": load.refused,
        "sent": load.next,
    }


def main() -> None:
    given = Load(**json.loads(sys.argv[1]))
    try:
        import uvloop

        said = uvloop.run(run(given))
    except ImportError:
        said = asyncio.run(run(given))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
