"""A site's local work: the batches it draws and the SGD it runs, one site at a time or many stacked.

`train_one` is the reference; `train_stacked` does the same arithmetic for many sites in one batched step
(torch.func.vmap over the stacked weights), and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from models.images import Images, to_tensor
from models.sensor import Sensor
from pipelines.federated.jobs import LocalWork, Parameters

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class LabelledRows:
    """images: uint8 [n, h, w, c]; labels: int64 [n]; weights: float32 [n], 1 for a bought label.

    old: bool [n], rows taken under the light before; sensor: how new pictures are exposed. In training, half of the
    old rows of an epoch are seen through it.
    """

    images: Images
    labels: torch.Tensor
    weights: torch.Tensor
    old: torch.Tensor | None = None
    sensor: Sensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """x: float [b, c, h, w]; y: int64 [b]; w: float [b], 0 for padding."""

    x: torch.Tensor
    y: torch.Tensor
    w: torch.Tensor


def batches(rows: LabelledRows, work: LocalWork, seed: int, augment: Augment | None) -> list[Batch]:
    """The site's batches of one round, the last of each epoch padded with weight 0 to full size."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    x_all = to_tensor(rows.images)
    out = []
    for _ in range(work.epochs):
        order = torch.from_numpy(rng.permutation(len(rows)))
        x_epoch = x_all[order]
        if augment is not None:
            x_epoch = augment(x_epoch, generator)
        if rows.sensor is not None and rows.old is not None:
            seen_anew = rows.old[order] & (torch.rand(len(rows), generator=generator) < 0.5)
            x_epoch = torch.where(seen_anew.view(-1, 1, 1, 1), rows.sensor(x_epoch, generator), x_epoch)
        for start in range(0, len(rows), work.batch_size):
            part = slice(start, start + work.batch_size)
            x, y, w = x_epoch[part], rows.labels[order][part], rows.weights[order][part]
            short = work.batch_size - len(y)
            if short:
                x = torch.cat([x, x.new_zeros((short, *x.shape[1:]))])
                y = torch.cat([y, y.new_zeros(short)])
                w = torch.cat([w, w.new_zeros(short)])
            out.append(Batch(x, y, w))
    return out


Loss = Callable[[Parameters, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _loss_function(model: nn.Module) -> Loss:
    def loss(parameters: Parameters, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(model, parameters, (x,))
        losses = cross_entropy(outputs, y, reduction="none")
        return (losses * w).sum() / w.sum().clamp_min(1e-12)

    return loss


def train_one(model: nn.Module, start: Parameters, steps: Sequence[Batch], work: LocalWork) -> tuple[Parameters, float]:
    """One site's update (end minus start) and mean loss: momentum SGD as torch.optim.SGD defines it."""
    step = grad_and_value(_loss_function(model))
    parameters = {name: tensor.clone() for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    losses = []
    for batch in steps:
        gradient, value = step(parameters, batch.x, batch.y, batch.w)
        if work.clip_norm > 0:
            norm = torch.sqrt(sum((g.square().sum() for g in gradient.values()), torch.zeros(())))
            scale = (work.clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
            gradient = {name: g * scale for name, g in gradient.items()}
        for name, tensor in parameters.items():
            velocity[name].mul_(work.momentum).add_(gradient[name] + work.weight_decay * tensor)
            tensor.sub_(velocity[name], alpha=work.learning_rate)
        losses.append(float(value))
    delta = {name: parameters[name] - start[name] for name in start}
    return delta, float(np.mean(losses)) if losses else 0.0


def train_stacked(
    model: nn.Module, start: Parameters, steps: Sequence[Sequence[Batch]], work: LocalWork
) -> list[tuple[Parameters, float]]:
    """`train_one` for many sites at once; a site that has run out of batches stands still."""
    sites = len(steps)
    step = vmap(grad_and_value(_loss_function(model)))
    parameters = {name: tensor.expand(sites, *tensor.shape).clone() for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    losses = torch.zeros(sites)
    for index in range(max((len(own) for own in steps), default=0)):
        active = torch.tensor([float(index < len(own)) for own in steps])
        current = [own[min(index, len(own) - 1)] for own in steps]
        x, y, w = (torch.stack([getattr(b, part) for b in current]) for part in ("x", "y", "w"))
        gradient, value = step(parameters, x, y, w)
        if work.clip_norm > 0:
            norm = torch.sqrt(sum((g.flatten(1).square().sum(1) for g in gradient.values()), torch.zeros(sites)))
            scale = (work.clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
            gradient = {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in gradient.items()}
        for name, tensor in parameters.items():
            moving = active.view(-1, *[1] * (tensor.dim() - 1))
            velocity[name].mul_(work.momentum).add_(gradient[name] + work.weight_decay * tensor)
            tensor.sub_(velocity[name] * moving, alpha=work.learning_rate)
        losses += value * active
    counts = torch.tensor([max(len(own), 1) for own in steps])
    means = losses / counts
    return [
        ({name: parameters[name][site] - start[name] for name in start}, float(means[site])) for site in range(sites)
    ]
