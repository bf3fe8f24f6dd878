"""The workloads' models in torch, as their users would write them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from workloads import WORKLOADS, Workload, initial


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.widen = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(nn.functional.gelu(self.widen(self.norm(x))))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 4, stride=4)
        self.first, self.second = Residual(32), Residual(32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(self.first(self.stem(x))).mean(dim=(2, 3))))


MODELS = {
    "lr": lambda: nn.Linear(64, 1),
    "mlp2nn": lambda: nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    ),
    "cifar": lambda: nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Linear(128, 10),
    ),
    "any_module": Patches,
}  # fmt: skip


def model_of(workload: Workload) -> nn.Module:
    """With the workload's initial weights."""
    model = MODELS[workload.name.rstrip("0123456789") if workload.name.startswith("lr") else workload.name]()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in initial(workload).items()})
    assert [*model.state_dict()] == [parameter.name for parameter in workload.parameters]
    return model


def loss_of(workload: Workload, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over the batch."""
    if workload.classes == 1:
        return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), y)
    return nn.functional.cross_entropy(logits, y)


def flat_of(model: nn.Module) -> np.ndarray:
    return torch.cat([value.detach().reshape(-1) for value in model.state_dict().values()]).numpy()


__all__ = ["WORKLOADS", "flat_of", "loss_of", "model_of"]
