"""Dense layers whose weights stay as they are while their site trains, or for a block of its steps.

A bare step adds rate · deltaᵀ·x to a weight matrix W. After the rows X with loss gradients D the layer is therefore
W + rate · Dᵀ·X, and a product with it is a product with W plus two thin ones; W itself moves once for many batches,
by one thick product. The numbers are the same up to rounding.
"""

from __future__ import annotations

import torch

from pipelines.federated.kernels.layers import Dense

LARGE = 2**18
"""Weights from which a matrix is deferred for the whole of a site's work: 1 MB, a core's second cache."""

BLOCK = 64
"""Rows that a first layer takes in advance."""


class Deferred(Dense):
    """Never moves: `update` says at last by how much it would have. For large matrices and sites with few rows."""

    def begin(self, rows: int) -> None:
        """A new site with at most so many rows, all its passes together."""
        outs, ins = self.weight.shape
        self.inputs = self._scratch(f"{self.name} inputs", (rows, ins), self.weight.dtype)
        self.deltas = self._scratch(f"{self.name} deltas", (rows, outs), self.weight.dtype)
        self.filled = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        # A product of a large matrix with a few columns takes half the time of one of a few rows with its transpose.
        outs, rows = self.shape[0], len(x)
        turned = torch.mm(self.weight, x.t(), out=self._scratch(f"{self.name} turned", (outs, rows), x.dtype))
        out = self._scratch(f"{self.name} out", (rows, outs), x.dtype).copy_(turned.t())
        if self.bias is not None:
            out.add_(self.bias)
        if self.filled:
            out.addmm_(x.mm(self.inputs[: self.filled].t()), self.deltas[: self.filled], alpha=self.rate)
        return out

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        before, past, upto = delta, self.filled, self.filled + len(delta)
        if further:
            before = torch.mm(delta, self.weight, out=self._scratch(f"{self.name} in", self.x.shape, delta.dtype))
            if past:
                before.addmm_(delta.mm(self.deltas[:past].t()), self.inputs[:past], alpha=self.rate)
        self.inputs[past:upto] = self.x
        self.deltas[past:upto] = delta
        self.filled = upto
        self._move_bias(delta)
        return before

    def update(self, out: torch.Tensor) -> None:
        """out [outs, ins]: what the site's work adds to the weight."""
        deltas = self.deltas[: self.filled].mul_(self.rate).t()
        if out.dtype == deltas.dtype:
            torch.mm(deltas, self.inputs[: self.filled], out=out)
        else:
            out.copy_(deltas.mm(self.inputs[: self.filled]))


class Ahead(Dense):
    """A first layer, which knows the rows of the steps to come: the weight moves once for a block of steps."""

    def look(self, x: torch.Tensor) -> None:
        """x [rows, in]: the rows of the block's steps, one batch after the other."""
        self.rows, count = x, len(x)
        self.past = 0
        self.outputs = torch.mm(x, self.weight.t(), out=self._scratch(f"{self.name} ahead", (count, len(self.weight))))
        self.products = torch.mm(x, x.t(), out=self._scratch(f"{self.name} products", (count, count)))
        self.deltas = self._scratch(f"{self.name} deltas", self.outputs.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x is known: only how many rows it has counts."""
        past, upto = self.past, self.past + len(x)
        out = self.outputs[past:upto]
        if past:
            out.addmm_(self.products[past:upto, :past], self.deltas[:past], alpha=self.rate)
        return out if self.bias is None else out.add_(self.bias)

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        upto = self.past + len(delta)
        self.deltas[self.past : upto] = delta
        self.past = upto
        self._move_bias(delta)
        if upto == len(self.rows):
            self.weight.addmm_(self.deltas.t(), self.rows, alpha=self.rate)
        return delta
