"""One round written out, in float64 or float32: what every peer's aggregate is held against."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from environments import folder
from torch_models import loss_of, model_of
from workloads import BATCH, Workload, data


def differences(workload: Workload, found: Path, orders: Path | None, examples: int) -> tuple[float, float]:
    """Of a saved aggregate: the largest one from float64's, and its norm by the aggregate's norm.

    The whole epoch of a workload with kinks is held against float32: digits say nothing there, and float64 is slow.
    """
    dtype = torch.float64 if examples == workload.checked else torch.float32
    wanted = aggregate(workload, examples, None if orders is None else np.load(orders), dtype)
    off = np.load(found) - wanted
    return float(np.abs(off).max()), float(np.linalg.norm(off) / np.linalg.norm(wanted))


def aggregate(workload: Workload, examples: int, orders: np.ndarray | None, dtype: torch.dtype) -> np.ndarray:
    """The server's change of weights, flat, after one round over clients 0..cohort-1 with `examples` rows each.

    `orders` [cohort, examples] names the rows where they are not taken as stored. Kept under the peers' folder.
    """
    key = hashlib.sha256(repr((workload, examples, str(dtype))).encode())
    if orders is not None:
        key.update(np.ascontiguousarray(orders).tobytes())
    kept = folder() / "reference" / f"{workload.name}-{key.hexdigest()[:16]}.npy"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, _aggregate(workload, examples, orders, dtype))
    return np.load(kept)


def _aggregate(workload: Workload, examples: int, orders: np.ndarray | None, dtype: torch.dtype) -> np.ndarray:
    xs, ys = map(torch.from_numpy, data(workload, workload.cohort))
    model = model_of(workload).to(dtype)
    parameters = list(model.parameters())
    start = [value.detach().clone() for value in parameters]
    total = [torch.zeros_like(value) for value in start]
    for client in range(workload.cohort):
        rows = torch.arange(examples) if orders is None else torch.from_numpy(orders[client]).long()
        with torch.no_grad():
            for value, begin in zip(parameters, start, strict=True):
                value.copy_(begin)
        for batch in rows.split(BATCH):
            y = ys[client][batch]
            loss = loss_of(workload, model(xs[client][batch].to(dtype)), y.to(dtype) if y.is_floating_point() else y)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for value, gradient in zip(parameters, gradients, strict=True):
                    value -= workload.learning_rate * gradient
        for summed, value, begin in zip(total, parameters, start, strict=True):
            summed += value.detach() - begin
    return torch.cat([summed.reshape(-1) / workload.cohort for summed in total]).double().numpy()
