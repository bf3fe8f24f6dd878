"""A service for tests: settings, an untrained champion, and the app over real sockets in a thread of this process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch

from models.images import read_image, to_tensor
from pipelines import registry
from pipelines.settings import Settings, load_settings
from pipelines.tracking import Run


def settings_in(folder: Path, empty_registry: Path) -> Settings:
    """Settings of the digits task in an empty home of their own."""
    made = load_settings(home=folder / "home", out=folder / "out")
    (made.home / "mlflow").mkdir(parents=True)
    shutil.copyfile(empty_registry, made.home / "mlflow" / "mlflow.db")
    return made


def register_untrained(into: Settings, seed: int = 0, key: str | None = None) -> registry.Version:
    """Register a model of the task whose random weights depend on `seed`."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in into.task.build_model().state_dict().items()
    }
    return register_weights(into, parameters, key or f"seed-{seed}", {"seed": str(seed)})


def register_trained(into: Settings, seed: int = 0, epochs: int = 12) -> registry.Version:
    """Register a model that has learned the task's rows in some seconds, without a federation."""
    task = into.task
    rows = [(image, label) for image, label in zip(*vars(task.load().development).values(), strict=True)]
    images = to_tensor(np.stack([read_image(image, task.input) for image, _ in rows]))
    labels = torch.tensor([int(label) for _, label in rows])
    torch.manual_seed(seed)
    model = task.build_model().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return register_weights(into, model.eval().state_dict(), f"trained-{seed}", {})


def register_weights(
    into: Settings,
    parameters: Mapping[str, torch.Tensor],
    key: str,
    tags: Mapping[str, str],
    summary: Path | None = None,
) -> registry.Version:
    return registry.register(
        into,
        parameters=parameters,
        key=key,
        tags=tags,
        figures={"gate.accuracy": 0.5},
        summary=summary,
        example=np.zeros((2, *into.task.input.shape), dtype=np.uint8),
        run_id=Run.start(into, "training", key).run_id,
    )


@dataclass
class Serving:
    """A service on a port of its own, in a thread of this process."""

    url: str
    client: httpx.Client

    def ready(self, version: int | None = None, within_s: float = 30.0) -> None:
        """Wait until a champion (or this version) serves."""
        from pipelines.replay import serving_version

        deadline = time.monotonic() + within_s
        while (serving := serving_version(self.url)) is None or serving != (version or serving):
            assert time.monotonic() < deadline, f"version {version} does not serve, but {serving}"
            time.sleep(0.02)


@contextmanager
def serving(settings: Settings) -> Iterator[Serving]:
    """The service of these settings, over real sockets."""
    import uvicorn

    from pipelines.service import create_app

    app = create_app(settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30) as client:
                yield Serving(url, client)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive(), "the service does not stop"


@contextmanager
def process(settings: Settings, port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The service as a process of its own, killed at the end."""
    started = subprocess.Popen(
        [sys.executable, "-m", "pipelines.service"],
        env=os.environ | settings.environment() | {"FEDLOOP_PORTS__SERVICE": str(port)} | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        if started.stderr:
            started.stderr.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def overwrite(path: Path, data: bytes) -> None:
    """Never empty meanwhile: a client that meets an empty database makes its tables."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
