"""What simulated clients keep between rounds: SCAFFOLD's control variates, Ditto's models, compression's residuals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from models.population import Ids


@dataclass(frozen=True)
class Remembered:
    """Vectors [size] by name and client; a client never seen has zeros. Grows with the clients that took part."""

    size: int
    rows: Mapping[str, Mapping[int, torch.Tensor]]

    @classmethod
    def nothing(cls, names: Iterable[str], size: int) -> Remembered:
        return cls(size, {name: {} for name in sorted(set(names))})

    @classmethod
    def from_tensors(cls, names: Iterable[str], size: int, tensors: Mapping[str, torch.Tensor]) -> Remembered:
        empty = cls.nothing(names, size)
        if "clients" not in tensors:
            return empty
        clients = tensors["clients"].numpy()
        return empty.keep(clients, {name: tensors[name] for name in empty.rows})

    @classmethod
    def in_context(cls, names: Iterable[str], size: int, context: Mapping[str, torch.Tensor]) -> Remembered:
        """What a training state's context says of them."""
        own = {name.removeprefix("memory/"): tensor for name, tensor in context.items() if name.startswith("memory/")}
        return cls.from_tensors(names, size, own if set(names) <= set(own) else {})

    def clients(self, name: str) -> Ids:
        """Who has such a vector, in order."""
        return np.array(sorted(self.rows[name]), dtype=np.int64)

    def of(self, clients: Ids) -> dict[str, torch.Tensor]:
        """By name: [clients, size]."""
        zeros = torch.zeros(self.size)
        return {
            name: torch.stack([own.get(int(c), zeros) for c in clients]) if len(clients) else zeros[None][:0]
            for name, own in self.rows.items()
        }

    def keep(self, clients: Ids, memory: Mapping[str, torch.Tensor]) -> Remembered:
        """With the clients' vectors replaced; the value it was stays as it was."""
        rows = {
            name: {**own, **dict(zip(clients.tolist(), memory[name], strict=True))} for name, own in self.rows.items()
        }
        return Remembered(self.size, rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        if not self.rows:
            return {}
        clients = np.array(sorted(next(iter(self.rows.values()))), dtype=np.int64)
        return {"clients": torch.from_numpy(clients), **self.of(clients)}
