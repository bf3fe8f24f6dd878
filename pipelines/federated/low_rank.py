"""Updates of matrices as products of two thin ones.

Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient compression for distributed optimization",
NeurIPS 2019. There the workers agree on a basis while they step together; a site that reports once a round has its
own basis, found from a random one in two iterations instead of one that begins at the round before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from models.draws import draw_seed, seeds_of, uniforms
from models.errors import BadInput
from pipelines.federated.compression import Codec
from pipelines.federated.layout import Layout
from pipelines.federated.rules import Seats

ITERATIONS = 2


@dataclass(frozen=True)
class LowRank(Codec):
    """Every parameter as a matrix [first dimension, the others] of rank `rank`, where that is smaller; biased: wrap it
    in ErrorFeedback. On the wire in float32: both factors, or the parameter itself, in the layout's order.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"a rank is 1 or more, not {self.rank}")

    @property
    def name(self) -> str:
        return f"low-rank({self.rank})"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        parts = self._parts(updates, seats)
        return torch.cat([(p[0] @ p[1].mT).flatten(1) if len(p) == 2 else p[0] for p in parts], dim=1)

    def size_bytes(self, layout: Layout) -> float:
        return 4.0 * sum(self.rank * sum(m) if (m := self._matrix(shape)) else prod(shape) for shape in layout.shapes)

    def encode(self, update: torch.Tensor, seats: Seats) -> bytes:
        parts = self._parts(update[None], seats)
        return b"".join(tensor.numpy().astype("<f4").tobytes() for part in parts for tensor in part)

    def decode(self, data: bytes, seats: Seats) -> torch.Tensor:
        values, taken, parts = torch.from_numpy(np.frombuffer(data, "<f4").copy()), 0, []
        for shape in seats.layout.shapes:
            matrix = self._matrix(shape)
            if matrix is None:
                parts.append(values[taken : taken + prod(shape)])
                taken += prod(shape)
                continue
            factors = values[taken : taken + self.rank * sum(matrix)].view(1, -1, self.rank)
            left, right = torch.split(factors, list(matrix), dim=1)
            parts.append((left @ right.mT).flatten())
            taken += factors.numel()
        return torch.cat(parts)

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of a parameter that is sent as factors; None where they would not be smaller."""
        if len(shape) < 2:
            return None
        rows, columns = shape[0], prod(shape[1:])
        return (rows, columns) if self.rank * (rows + columns) < rows * columns else None

    def _parts(self, updates: torch.Tensor, seats: Seats) -> list[tuple[torch.Tensor, ...]]:
        """For each parameter: its two factors [sites, rows, rank] and [sites, columns, rank], or itself [sites, n]."""
        parts: list[tuple[torch.Tensor, ...]] = []
        seeds, drawn = seeds_of(draw_seed("low-rank"), seats.seeds), 0
        for shape, flat in zip(seats.layout.shapes, torch.split(updates, seats.layout.sizes, dim=1), strict=True):
            matrix = self._matrix(shape)
            if matrix is None:
                parts.append((flat,))
                continue
            whole = flat.reshape(len(updates), *matrix)
            basis = uniforms(seeds, matrix[1] * self.rank, drawn) - 0.5
            right = torch.from_numpy(basis).to(whole.dtype).view(len(updates), matrix[1], self.rank)
            drawn += matrix[1] * self.rank
            for _ in range(ITERATIONS):
                left = torch.linalg.qr(whole @ right).Q
                right = whole.mT @ left
            parts.append((left, right))
        return parts
