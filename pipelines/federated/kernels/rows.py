"""From a chunk's plan to the rows of one batch, as a model takes them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.steps import Steps


def gather(x: torch.Tensor, index: torch.Tensor, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
    """Rows `index` [n] of x as `dtype` [n, ...], uint8 scaled to [0, 1]; other whole numbers (tokens) stay whole.

    The result stands until the next call with the same scratch.
    """
    shape = (len(index), *x.shape[1:])
    taken = scratch("taken", shape, x.dtype)
    torch.index_select(x, 0, index, out=taken)
    if x.dtype == torch.uint8:
        return torch.mul(taken, 1 / 255, out=scratch("scaled", shape)).to(dtype)
    return taken.to(dtype) if x.is_floating_point() else taken


def widths(steps: Steps) -> NDArray[np.int64]:
    """int64 [sites, steps]: rows of each batch without the padding behind them; of padding alone, all."""
    sites, count, batch = steps.index.shape
    if steps.weight is None:
        return np.full((sites, count), batch, dtype=np.int64)
    behind = (steps.weight.numpy()[:, :, ::-1] != 0).argmax(axis=2)
    return np.asarray(batch - behind, dtype=np.int64)
