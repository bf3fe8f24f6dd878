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
            made.append((json.dumps({"inputs": [base64.b64encode(png).decode()]}).encode() if load.peer == "mlflow" else png, b""))
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


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    at = head.lower().index(b"content-length:") + 15
    body = await reader.readexactly(int(head[at : head.index(b"\r", at)]))
    return int(head[9:12]), body


async def connection(load: Load, made: list[tuple[bytes, bytes]]) -> None:
    reader = writer = None
    while time.perf_counter() < load.until:
        number, load.next = load.next, load.next + 1
        name = f"{load.tag}-{number}"
        message = request(load, name, made[number % len(made)])
        give_up = time.perf_counter() + load.patience_s
        while True:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
                began = time.perf_counter()
                writer.write(message)
                status, body = await answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                writer = None
                if time.perf_counter() > give_up:
                    load.refused += 1
                    break
                await asyncio.sleep(0.05)
                continue
            if status == 503 and time.perf_counter() < give_up:
                await asyncio.sleep(0.05)
                continue
            load.latencies_s.append(time.perf_counter() - began)
            if status == 200:
                load.taken[name] = json.loads(body)["prediction_id"] if load.answered else ""
            else:
                load.refused += 1
            break
    if writer is not None:
        writer.close()


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
    return {"requests_s": len(load.taken) / took, "p50_ms": p50, "p99_ms": p99, "answered": len(load.taken), "refused": load.refused, "sent": load.next}


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
