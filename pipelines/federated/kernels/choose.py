"""Which kernel is fastest for a model, a work and a machine is measured on a few real sites, once, and remembered.

A kernel that is fast and wrong is no choice: each is first held against the plain one on the same batches.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.errors import BadInput
from pipelines.federated.files import digest, keep_measurement, measurements
from pipelines.federated.kernels import compiled, dense, sequential
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.kernels.plain import plain
from pipelines.federated.kernels.stacked import stacked
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork

Make = Callable[[], Kernel]

LOG = logging.getLogger(__name__)

STACKED_NUMBERS = 2**22
"""Weights that are stacked at most: 16 MB. Beyond, they leave the caches and one site after the other is faster."""

BFLOAT16 = "-bf16"
"""What the names of kernels end in that compute in bfloat16."""

ROUNDING = 1e-3
"""How far an update may be from the plain one's, as a share of its length."""

SECONDS = 1.0
"""For all measurements together; a model whose single site takes longer is measured once a kernel."""


def candidates(model: nn.Module, layout: Layout, dtype: torch.dtype = torch.float32) -> dict[str, Make]:
    """Every kernel that can run the model, by name.

    dtype bfloat16 allows kernels that compute in it (their weights are float32); it forbids no other.
    """
    has_images = any(len(shape) == 4 for shape in layout.shapes)
    found: dict[str, Make] = {}
    for half, suffix in ((torch.float32, ""), (torch.bfloat16, BFLOAT16)):
        if half in (torch.float32, dtype):
            found["plain" + suffix] = partial(plain, model, layout, dtype=half)
            if has_images:
                found["plain-channels-last" + suffix] = partial(plain, model, layout, channels_last=True, dtype=half)
            if sequential.able(model):
                found["sequential" + suffix] = partial(sequential.sequential, model, layout, dtype=half)
    if dense.able(model):
        found |= {
            f"dense-{n}": partial(dense.dense, model, layout, chunk=n)
            for n in (8, 16)
            if n * layout.size <= STACKED_NUMBERS
        }
    chunks = [chunk for chunk in (32, 64, 128) if chunk * layout.size <= STACKED_NUMBERS]
    if compiled.able(model):
        fitting = [n for n in (8, 128, 512) if n == 8 or n * layout.size <= STACKED_NUMBERS]
        found |= {f"compiled-{n}": partial(compiled.compiled, model, layout, chunk=n) for n in fitting}
    elif not any(True for _ in model.buffers()):
        found |= {f"stacked-{chunk}": partial(stacked, model, layout, chunk=chunk) for chunk in chunks}
    return found


def kernel_named(name: str, model: nn.Module, layout: Layout) -> Kernel:
    """The kernel that `choose` named, for a worker process or a run that goes on: its bits depend on the kernel."""
    able = candidates(model, layout, torch.bfloat16)
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
    key = digest(_circumstances(model, layout, steps, work, dtype))
    remembered = measurements(memory).get(key)
    if isinstance(remembered, dict) and remembered.get("kernel") in able:
        return str(remembered["kernel"])
    rates = measure(model, layout, able, steps, work)
    best = max(rates, key=lambda name: rates[name])
    found = {"kernel": best, "updates_per_s": {name: float(f"{rate:.3g}") for name, rate in rates.items()}}
    keep_measurement(memory, key, found)
    return best


def measure(model: nn.Module, layout: Layout, able: dict[str, Make], steps: Steps, work: LocalWork) -> dict[str, float]:
    """Client updates per second of every kernel whose updates are the plain one's."""
    start = layout.flatten(dict(model.named_parameters()))
    trial = _part(steps, list(range(min(3, len(steps)))), 3)
    exact = plain(model, layout)(start, trial, work)[0].clone()
    allowed = ROUNDING * exact.norm(dim=1) + 1e-6
    rates: dict[str, float] = {}
    for name, make in able.items():
        kernel = make()
        began = time.perf_counter()
        apart = (kernel(start, trial, work)[0] - exact).norm(dim=1)
        cost = (time.perf_counter() - began) / max(int(trial.steps.sum()), 1)
        within = allowed
        if name.endswith(BFLOAT16):
            within = (
                2 * (plain(model, layout, dtype=torch.bfloat16)(start, trial, work)[0] - exact).norm(dim=1) + allowed
            )
        # Not every site: where a rectifier's input is almost 0, rounding decides whether it passes the gradient.
        if (apart <= within).sum() * 2 <= len(trial):
            LOG.warning("kernel %s is not used: its updates are up to %.2g off the plain one's", name, apart.max())
            continue
        rates[name] = _rate(kernel, start, steps, work, cost, SECONDS / len(able))
    if not rates:
        raise BadInput("training a few sites gives no finite update; lower the learning rate or look at the data")
    return rates


def _rate(kernel: Kernel, start: torch.Tensor, steps: Steps, work: LocalWork, cost: float, seconds: float) -> float:
    """The best of some runs, of a few sites or, where sites step together, a chunk, in which sites may repeat.

    cost: seconds of one step of one site, about; where whole sites would take too long they are cut short.
    """
    alone = not kernel.together
    affordable = max(1, int(seconds / 2 / max(cost, 1e-9)))
    longest = max(1, int(steps.steps.max()))
    count = max(1, min(4, affordable // longest)) if alone else kernel.chunk
    sites = [site % len(steps) for site in range(count)]
    part = _part(steps, sites, max(2, min(longest, affordable if alone else longest)))
    best, took, spent, runs = float("inf"), 0.0, 0.0, 0
    while runs < 1 or (spent + took < seconds and runs < 8):
        began = time.perf_counter()
        kernel(start, part, work)
        took = time.perf_counter() - began
        spent += took
        runs += 1
        best = min(best, took)
    share = int(part.steps.sum()) / max(int(steps.steps[sites].sum()), 1)
    return count * share / best


def _part(steps: Steps, sites: list[int], count: int) -> Steps:
    """The first `count` batches of some of the sites."""
    weight = None if steps.weight is None else steps.weight[sites, :count]
    own = np.minimum(steps.steps[sites], count)
    return Steps(steps.x, steps.y, steps.index[sites, :count], weight, own, steps.examples[sites])


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
