"""Which kernel is fastest for a model, a work and a machine is measured on a few real sites, once, and remembered.

A kernel that is fast and wrong is no choice: each is first held against the plain one on the same batches.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.errors import BadInput
from pipelines.federated.kernels import linear, sequential
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.kernels.plain import plain
from pipelines.federated.kernels.stacked import stacked
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.store import digest, write_atomically
from pipelines.federated.work import LocalWork

Make = Callable[[], Kernel]

LOG = logging.getLogger(__name__)

STACKED_NUMBERS = 2**22
"""Weights that are stacked at most: 16 MB. Beyond, they leave the caches and one site after the other is faster."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""How far an update may be from the plain one's of the same type, as a share of its length."""

SECONDS = 2.5
"""For all measurements together; a model whose single site takes longer is measured once a kernel."""


def candidates(model: nn.Module, layout: Layout, dtype: torch.dtype = torch.float32) -> dict[str, Make]:
    """Every kernel that can run the model, by name. dtype bfloat16: kernels that compute in it, weights in float32."""
    half = dtype == torch.bfloat16
    suffix = "-bf16" if half else ""
    found: dict[str, Make] = {"plain" + suffix: partial(plain, model, layout, dtype=dtype)}
    if any(len(shape) == 4 for shape in layout.shapes):
        found["plain-channels-last" + suffix] = partial(plain, model, layout, channels_last=True, dtype=dtype)
    if sequential.able(model):
        found["sequential" + suffix] = partial(sequential.sequential, model, layout, dtype=dtype)
    if half:
        return found
    chunks = [chunk for chunk in (32, 64, 128, 256) if chunk * layout.size <= STACKED_NUMBERS]
    if linear.able(model):
        found |= {f"linear-{chunk}": partial(linear.linear, model, layout, chunk=chunk) for chunk in chunks}
    elif not any(True for _ in model.buffers()):
        found |= {f"stacked-{chunk}": partial(stacked, model, layout, chunk=chunk) for chunk in chunks[:3]}
    return found


def kernel_named(name: str, model: nn.Module, layout: Layout) -> Kernel:
    """The kernel that `choose` named, for a worker process or a run that goes on: its bits depend on the kernel."""
    able = candidates(model, layout) | candidates(model, layout, torch.bfloat16)
    if name not in able:
        raise BadInput(f"no kernel {name!r} trains this model; take one of {', '.join(able)}")
    return able[name]()


def choose(
    model: nn.Module,
    layout: Layout,
    steps: Steps,
    work: LocalWork,
    memory: Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> str:
    """The name of the kernel that trains sites like those of `steps` fastest here.

    memory: a JSON file that keeps what was measured; one that cannot be read is measured and written anew.
    """
    able = candidates(model, layout, dtype)
    if len(able) == 1 or not len(steps):
        return next(iter(able))
    known = _read(memory)
    key = digest(_circumstances(model, layout, steps, work, dtype))
    remembered = known.get(key)
    if isinstance(remembered, dict) and remembered.get("kernel") in able:
        return str(remembered["kernel"])
    rates = measure(model, layout, able, steps, work, dtype)
    best = max(rates, key=lambda name: rates[name])
    if memory is not None:
        entry = {"kernel": best, "updates_per_s": {name: float(f"{rate:.3g}") for name, rate in rates.items()}}
        write_atomically(memory, json.dumps(_read(memory) | {key: entry}, indent=1).encode())
    return best


def measure(
    model: nn.Module,
    layout: Layout,
    able: dict[str, Make],
    steps: Steps,
    work: LocalWork,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Client updates per second of every kernel whose updates are the plain one's."""
    start = layout.flatten(dict(model.named_parameters()))
    trial = _sites(steps, [int(steps.steps.argmax())])
    reference = plain(model, layout, dtype=dtype)(start, trial, work)[0].clone()
    rates: dict[str, float] = {}
    for name, make in able.items():
        kernel = make()
        began = time.perf_counter()
        apart = float((kernel(start, trial, work)[0] - reference).norm())
        cost = time.perf_counter() - began
        if not apart <= TOLERANCE[dtype] * float(reference.norm()) + 1e-6:
            LOG.warning("kernel %s is not used: its update of one site is %.2g off the plain one's", name, apart)
            continue
        rates[name] = _rate(kernel, start, steps, work, cost, SECONDS / len(able))
    if not rates:
        raise BadInput("training one site gives no finite update; lower the learning rate or look at the data")
    return rates


def _rate(kernel: Kernel, start: torch.Tensor, steps: Steps, work: LocalWork, cost: float, seconds: float) -> float:
    """The best of some runs; lone kernels get a few sites, stacked ones a chunk, in which sites may repeat."""
    alone = not kernel.name.startswith(("stacked", "linear"))
    count = max(1, min(4, int(seconds / max(cost, 1e-9) / 3))) if alone else kernel.chunk
    part = _sites(steps, [site % len(steps) for site in range(count)])
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 1 or (spent < seconds and runs < 8):
        began = time.perf_counter()
        kernel(start, part, work)
        took = time.perf_counter() - began
        spent += took
        runs += 1
        best = min(best, took)
    return count / best


def _sites(steps: Steps, sites: list[int]) -> Steps:
    weight = None if steps.weight is None else steps.weight[sites]
    return Steps(steps.x, steps.y, steps.index[sites], weight, steps.steps[sites], steps.examples[sites])


def _circumstances(
    model: nn.Module, layout: Layout, steps: Steps, work: LocalWork, dtype: torch.dtype
) -> dict[str, object]:
    """All that a measurement holds for. Learning rate and norms change no speed, whether they are there does."""
    return {
        "model": repr(model),
        "shapes": layout.shapes,
        "work": {name: bool(value) for name, value in asdict(work).items()},
        "batches": list(steps.index.shape[1:]),
        "rows": [str(steps.x.dtype), list(steps.x.shape[1:]), steps.weight is None],
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "cpu family", "model\t", "flags")
    return "\n".join(line for line in dict.fromkeys(lines) if line.startswith(wanted)) or platform.processor()


def _read(memory: Path | None) -> dict[str, object]:
    if memory is None:
        return {}
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
