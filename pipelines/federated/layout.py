"""Where each parameter lies in one flat vector. Updates are flat and stacked, [sites, size]; a lone site is a stack
of one, so the same stage, rule and reducer serve a hospital and a chunk of 128 phones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from models.errors import BadInput
from models.fleet_task import FleetTask
from models.task import Task


def drawn_model(task: Task | FleetTask, seed: int) -> nn.Module:
    """The task's model with initial weights that the seed decides; torch's own generator is left as it was.

    Raises:
        BadInput: the model keeps state over examples, or draws in the forward pass.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.build_model()
    unfit = {type(m).__name__ for m in model.modules() if isinstance(m, _DropoutNd) or list(m.buffers(recurse=False))}
    if unfit:
        raise BadInput(
            f"task {task.name}: {', '.join(sorted(unfit))} keeps state or draws at random in the forward pass, so "
            "sites could not be stepped together nor a run resumed exactly; use GroupNorm, or weight decay for dropout"
        )
    return model


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's weights, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's parameters, in the order in which they lie in the flat vector: by name, so that
    two who hold the same parameters, however they came by them, mean the same vector.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor]) -> Layout:
        names = tuple(sorted(parameters))
        return cls(names, tuple(tuple(parameters[name].shape) for name in names))

    @classmethod
    def of_model(cls, model: nn.Module) -> Layout:
        return cls.of(dict(model.named_parameters()))

    @cached_property
    def sizes(self) -> list[int]:
        return [prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """Parameters in all: the length of the flat vector."""
        return sum(self.sizes)

    def flatten(self, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One vector [size] of a dictionary of tensors."""
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views into the last dimension of `flat` [..., size], by name: [..., *shape]."""
        parts = flat.split_with_sizes(self.sizes, dim=-1)
        # Splitting the last dimension of a slice needs no copy, so this is a view.
        return {
            name: part.view((*part.shape[:-1], *shape))
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }
