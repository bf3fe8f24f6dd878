"""Stages that send some coordinates of an update and leave the others out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import draw_seed, seeds_of, words
from models.errors import BadInput
from pipelines.federated.compression import Codec, Quantise
from pipelines.federated.layout import Layout
from pipelines.federated.rules import Seats

PAGE = 2**16
"""Coordinates whose place in their page fits in two bytes."""


@dataclass(frozen=True)
class Sparse(Codec):
    """A share of the coordinates, and 0 for the rest: make it by `TopK` or `RandomMask`.

    On the wire: the places, where the server cannot know them, and the values in float32, or as `values` encodes them.
    Places are a bit for each coordinate or, where that is shorter, two bytes for each value and four for the count of
    every page of 2^16 coordinates.
    """

    share: float
    values: Quantise | None = None
    random: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            what = "RandomMask" if self.random else "TopK"
            raise BadInput(f"{what} keeps a share of the coordinates above 0 and up to 1, not {self.share:g}")

    @property
    def name(self) -> str:
        of = f"{self.share:g}, {self.values.name}" if self.values else f"{self.share:g}"
        return f"mask({of})" if self.random else f"top({of})"

    @property
    def contracts(self) -> bool:
        return not self.random

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        kept, values = self._kept(updates, seats)
        if self.values is not None:
            values = self.values.on_site(values, seats)
        return torch.zeros_like(updates).scatter_(1, kept, values)

    def size_bytes(self, layout: Layout) -> float:
        count = self._count(layout.size)
        return self._places_length(layout.size) + (4 * count if self.values is None else self.values.length(count))

    def encode(self, update: torch.Tensor, seats: Seats) -> bytes:
        kept, (values,) = self._kept(update[None], seats)
        places = b"" if self.random else _encode_places(kept[0].numpy(), len(update))
        raw = values.numpy().astype("<f4").tobytes() if self.values is None else self.values.encode(values, seats)
        return places + raw

    def decode(self, data: bytes, seats: Seats) -> torch.Tensor:
        size = seats.layout.size
        count, split = self._count(size), self._places_length(size)
        kept = self._drawn(seats, size)[0] if self.random else _decode_places(data[:split], count, size)
        raw, form = data[split:], self.values
        values = torch.from_numpy(np.frombuffer(raw, "<f4").copy()) if form is None else form.unpack(raw, count)
        return torch.zeros(size).scatter_(0, kept, values)

    def _count(self, size: int) -> int:
        return max(1, round(self.share * size))

    def _places_length(self, size: int) -> int:
        return 0 if self.random else _places_length(self._count(size), size)

    def _kept(self, updates: torch.Tensor, seats: Seats) -> tuple[torch.Tensor, torch.Tensor]:
        """Which coordinates of each site, int64 [sites, k], ascending, and what is sent of them [sites, k]."""
        size = updates.shape[1]
        if self.random:
            kept = self._drawn(seats, size)
            return kept, updates.gather(1, kept) * (size / kept.shape[1])
        kept = updates.abs().topk(self._count(size), dim=1, sorted=False).indices.sort(dim=1).values
        return kept, updates.gather(1, kept)

    def _drawn(self, seats: Seats, size: int) -> torch.Tensor:
        """int64 [sites, k], ascending: every subset of that size is as likely."""
        count = self._count(size)
        drawn = [
            np.sort(np.argpartition(words(seeds_of(draw_seed("mask"), np.array([seed])), size)[0], count - 1)[:count])
            for seed in seats.seeds
        ]
        return torch.from_numpy(np.stack(drawn))


TopK = partial(Sparse, random=False)
"""The coordinates that are largest in magnitude. Biased: wrap it in ErrorFeedback.

Aji and Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017.
"""

RandomMask = partial(Sparse, random=True)
"""Random coordinates, scaled up by the share's inverse, so that the mean over sites is not off. Which ones follows from
the site's seed of the round, which the server has: no places are on the wire.

Konečný et al., "Federated learning: strategies for improving communication efficiency", 2016 (random mask).
"""


def _places_length(count: int, size: int) -> int:
    return min(2 * count + 4 * math.ceil(size / PAGE), math.ceil(size / 8))


def _encode_places(places: NDArray[np.int64], size: int) -> bytes:
    if _places_length(len(places), size) == math.ceil(size / 8):
        present = np.zeros(size, dtype=bool)
        present[places] = True
        return np.packbits(present).tobytes()
    counts = np.bincount(places // PAGE, minlength=math.ceil(size / PAGE))
    return counts.astype("<u4").tobytes() + (places % PAGE).astype("<u2").tobytes()


def _decode_places(data: bytes, count: int, size: int) -> torch.Tensor:
    if len(data) == math.ceil(size / 8):
        return torch.from_numpy(np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), count=size)))
    pages = math.ceil(size / PAGE)
    counts = np.frombuffer(data, "<u4", pages)
    page = np.repeat(np.arange(pages), counts)
    return torch.from_numpy(page * PAGE + np.frombuffer(data, "<u2", count, offset=4 * pages))
