"""Memory that outlives a call: allocating anew for each site costs more than a small site's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch


class Scratch:
    """Named tensors that grow and are handed out again, with whatever the last user left in them."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Contiguous, of the given shape, uninitialised."""
        needed = prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < needed or kept.dtype != dtype:
            kept = self._kept[name] = torch.empty(needed, dtype=dtype)
        return kept[:needed].view(*shape)
