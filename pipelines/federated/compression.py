"""Stages that make an update smaller on the wire, and the bytes they make of it.

Each stage is lossy in the way its paper says, `on_site` gives what the server will decode, and `size_bytes` is the
length of `encode`. A strategy has one of them at the most: of two, only the last one's form would be sent. Draws come
from the site's seed of the round: a resumed run sends the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from models.draws import Words, draw_seed, seeds_of, words
from models.errors import BadInput
from pipelines.federated.layout import Layout
from pipelines.federated.rules import Seats
from pipelines.federated.stages import Stage


class Codec(Stage, Protocol):
    """A stage whose result has a form on the wire. seats: of one site.

    contracts: an update is nearer to what is decoded of it than to zero.
    """

    @property
    def encodes(self) -> bool:
        return True

    @property
    def contracts(self) -> bool:
        return True

    def encode(self, update: torch.Tensor, seats: Seats) -> bytes:
        """One site's update [size], not yet through `on_site`, as it is sent."""
        ...

    def decode(self, data: bytes, seats: Seats) -> torch.Tensor:
        """What `on_site` gives for it [size], bit for bit."""
        ...


@dataclass(frozen=True)
class Quantise(Codec):
    """Stochastic rounding to 8 or 4 bits on a scale of each block's own, so that the mean over sites is not off.

    Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", NeurIPS 2017, with
    the block's largest magnitude for its norm. A block takes its scale in float32 beside its codes; 4-bit codes go
    two to a byte.
    """

    bits: int = 8
    block: int = 512

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block < 1:
            raise BadInput(f"quantise to 4 or 8 bits in blocks of at least 1, not {self.bits} in {self.block}")

    @property
    def name(self) -> str:
        return f"quantise({self.bits}, {self.block})"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        return self._values(*self._codes(updates, seats.seeds))

    def size_bytes(self, layout: Layout) -> float:
        return self.length(layout.size)

    def length(self, count: int) -> int:
        """Bytes that `count` values take."""
        return 4 * math.ceil(count / self.block) + math.ceil(count * self.bits / 8)

    def encode(self, update: torch.Tensor, seats: Seats) -> bytes:
        scales, codes = self._codes(update[None], seats.seeds)
        packed = codes.numpy().ravel()
        if self.bits == 4:
            halves = (np.append(packed, np.int8(0)) if len(packed) % 2 else packed).view(np.uint8) + np.uint8(8)
            packed = (halves[0::2] << 4 | halves[1::2]).view(np.int8)
        return scales.numpy().astype("<f4").tobytes() + packed.tobytes()

    def decode(self, data: bytes, seats: Seats) -> torch.Tensor:
        return self.unpack(data, seats.layout.size)

    def unpack(self, data: bytes, count: int) -> torch.Tensor:
        """`count` values of their encoded form."""
        blocks = math.ceil(count / self.block)
        scales = np.frombuffer(data, "<f4", blocks)
        packed = np.frombuffer(data, np.uint8, offset=4 * blocks)
        codes = packed.view(np.int8)
        if self.bits == 4:
            codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()[:count].astype(np.int8) - np.int8(8)
        return self._values(torch.from_numpy(scales.copy())[None], torch.from_numpy(codes.copy())[None])[0]

    def _codes(self, rows: torch.Tensor, seeds: Words) -> tuple[torch.Tensor, torch.Tensor]:
        """rows [sites, n] → a scale for each block [sites, blocks] and int8 codes [sites, n]."""
        levels = 2 ** (self.bits - 1) - 1
        sites, count = rows.shape
        padded = torch.nn.functional.pad(rows.float(), (0, -count % self.block)).view(sites, -1, self.block)
        scales = padded.abs().amax(dim=2) / levels
        steps = torch.where(scales[:, :, None] > 0, padded / scales[:, :, None], 0).view(sites, -1)[:, :count]
        codes = torch.empty(sites, count, dtype=torch.int8)
        for site, seed in enumerate(seeds_of(draw_seed("quantise"), seeds)):
            codes[site] = (steps[site] + _uniforms(seed, count)).floor_().clamp_(-levels, levels)
        return scales, codes

    def _values(self, scales: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return codes * scales.repeat_interleave(self.block, dim=1)[:, : codes.shape[1]]


@dataclass(frozen=True)
class ErrorFeedback(Stage):
    """What a lossy stage leaves out of an update is kept at the site ("residual") and added to its next one.

    Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes
    SignSGD and other gradient compression schemes", ICML 2019.
    """

    stage: Codec

    def __post_init__(self) -> None:
        if not self.stage.contracts:
            raise BadInput(
                f"error feedback around {self.stage.name} lets the residual grow without bound, since it scales up what"
                " it keeps; use it alone, or error feedback around TopK"
            )

    @property
    def name(self) -> str:
        return f"feedback({self.stage.name})"

    @property
    def memory(self) -> tuple[str, ...]:
        return ("residual",)

    @property
    def encodes(self) -> bool:
        return True

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        whole = updates + seats.memory["residual"]
        sent = self.stage.on_site(whole, seats)
        seats.memory["residual"] = whole - sent
        return sent

    def size_bytes(self, layout: Layout) -> float:
        return self.stage.size_bytes(layout)


def _uniforms(seed: np.uint64, count: int) -> torch.Tensor:
    """float32 [count] in [0, 1), 24 bits each: as fine as the numbers that are rounded by them."""
    halves = words(np.array([seed]), (count + 1) // 2)[0].view(np.uint32)[:count]
    return torch.from_numpy((halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24))
