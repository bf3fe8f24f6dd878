"""Stages that send some coordinates of an update and leave the others out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import draw_seed, seeds_of, words
from models.errors import BadInput
from pipelines.federated.compression import Quantise
from pipelines.federated.layout import Layout
from pipelines.federated.rules import Seats

PAGE = 2**16
"""Coordinates whose place in their page fits in two bytes."""


@dataclass(frozen=True)
class TopK:
    """The share of coordinates that are largest in magnitude, and 0 for the rest. Biased: wrap it in ErrorFeedback.

    Aji and Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017. On the wire: the values in
    float32 (or as `values` encodes them), and their places, as a bit for each coordinate or, where that is shorter,
    as two bytes for each value and four for the count of every page of 2^16 coordinates.
    """

    share: float
    values: Quantise | None = None
    memory: tuple[str, ...] = ()
    contracts: bool = True

    def __post_init__(self) -> None:
        _check_share("TopK", self.share)

    @property
    def name(self) -> str:
        return f"top({self.share:g}{', ' + self.values.name if self.values else ''})"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        kept = self._kept(updates)
        values = updates.gather(1, kept)
        if self.values is not None:
            values = self.values.on_site(values, seats)
        return torch.zeros_like(updates).scatter_(1, kept, values)

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        return update

    def size_bytes(self, layout: Layout, size_bytes: float) -> float:
        count = _count(self.share, layout.size)
        return _places_length(count, layout.size) + _values_length(self.values, count)

    def encode(self, update: torch.Tensor, seats: Seats) -> bytes:
        kept = self._kept(update[None])[0]
        return _encode_places(kept.numpy(), len(update)) + _encode_values(self.values, update[kept], seats)

    def decode(self, data: bytes, seats: Seats) -> torch.Tensor:
        size = seats.layout.size
        count = _count(self.share, size)
        split = _places_length(count, size)
        kept = torch.from_numpy(_decode_places(data[:split], count, size))
        return torch.zeros(size).scatter_(0, kept, _decode_values(self.values, data[split:], count))

    def _kept(self, updates: torch.Tensor) -> torch.Tensor:
        """int64 [sites, k], ascending."""
        count = _count(self.share, updates.shape[1])
        return updates.abs().topk(count, dim=1, sorted=False).indices.sort(dim=1).values


@dataclass(frozen=True)
class RandomMask:
    """A random share of coordinates, scaled up by its inverse, so that the mean over sites is not off.

    Konečný et al., "Federated learning: strategies for improving communication efficiency", 2016 (random mask). Which
    coordinates follows from the site's seed of the round, which the server has: only values are on the wire.
    """

    share: float
    values: Quantise | None = None
    memory: tuple[str, ...] = ()
    contracts: bool = False

    def __post_init__(self) -> None:
        _check_share("RandomMask", self.share)

    @property
    def name(self) -> str:
        return f"mask({self.share:g}{', ' + self.values.name if self.values else ''})"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        kept = torch.stack([self._kept(seed, updates.shape[1]) for seed in seats.seeds])
        values = updates.gather(1, kept) * (updates.shape[1] / kept.shape[1])
        if self.values is not None:
            values = self.values.on_site(values, seats)
        return torch.zeros_like(updates).scatter_(1, kept, values)

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        return update

    def size_bytes(self, layout: Layout, size_bytes: float) -> float:
        return _values_length(self.values, _count(self.share, layout.size))

    def encode(self, update: torch.Tensor, seats: Seats) -> bytes:
        kept = self._kept(seats.seeds[0], len(update))
        return _encode_values(self.values, update[kept] * (len(update) / len(kept)), seats)

    def decode(self, data: bytes, seats: Seats) -> torch.Tensor:
        kept = self._kept(seats.seeds[0], seats.layout.size)
        return torch.zeros(seats.layout.size).scatter_(0, kept, _decode_values(self.values, data, len(kept)))

    def _kept(self, seed: np.uint64, size: int) -> torch.Tensor:
        """int64 [k], ascending: every subset of that size is as likely."""
        keys = words(seeds_of(draw_seed("mask"), np.array([seed])), size)[0]
        return torch.from_numpy(
            np.sort(np.argpartition(keys, _count(self.share, size) - 1)[: _count(self.share, size)])
        )


def _check_share(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise BadInput(f"{what} keeps a share of the coordinates above 0 and up to 1, not {share:g}")


def _count(share: float, size: int) -> int:
    return max(1, round(share * size))


def _values_length(values: Quantise | None, count: int) -> int:
    return 4 * count if values is None else values.length(count)


def _encode_values(values: Quantise | None, kept: torch.Tensor, seats: Seats) -> bytes:
    return kept.numpy().astype("<f4").tobytes() if values is None else values.encode(kept, seats)


def _decode_values(values: Quantise | None, data: bytes, count: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, "<f4").copy()) if values is None else values.unpack(data, count)


def _places_length(count: int, size: int) -> int:
    return min(2 * count + 4 * math.ceil(size / PAGE), math.ceil(size / 8))


def _encode_places(places: NDArray[np.int64], size: int) -> bytes:
    if _places_length(len(places), size) == math.ceil(size / 8):
        present = np.zeros(size, dtype=bool)
        present[places] = True
        return np.packbits(present).tobytes()
    counts = np.bincount(places // PAGE, minlength=math.ceil(size / PAGE))
    return counts.astype("<u4").tobytes() + (places % PAGE).astype("<u2").tobytes()


def _decode_places(data: bytes, count: int, size: int) -> NDArray[np.int64]:
    if len(data) == math.ceil(size / 8):
        return np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), count=size)).astype(np.int64)
    pages = math.ceil(size / PAGE)
    counts = np.frombuffer(data, "<u4", pages)
    page = np.repeat(np.arange(pages), counts)
    return np.asarray(page * PAGE + np.frombuffer(data, "<u2", count, offset=4 * pages), dtype=np.int64)
