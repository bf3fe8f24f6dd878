"""Chains of dense layers, the sites of a chunk side by side: every product is one over all their matrices.

For models whose weights, stacked, stay near the processor: a step costs its calls once for the chunk and not for each
site. The first layer knows the rows of the steps to come, so its matrices move once for a block of steps (see
`deferred.Ahead`, which does the same for one site), and all sites' first block is one product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.federated.kernels import sequential
from pipelines.federated.kernels.deferred import BLOCK
from pipelines.federated.kernels.descent import bare
from pipelines.federated.kernels.layers import Rectify, Tangent
from pipelines.federated.kernels.lockstep import Lockstep, lockstep
from pipelines.federated.kernels.rows import gather
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.loss import mean_losses, pull_of_loss, wanted_outputs
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


def able(model: nn.Module) -> bool:
    """Whether the model is a chain of several dense layers with ReLU or tanh between them, maybe behind nn.Flatten."""
    return (
        sequential.able(model)
        and sum(type(layer) is nn.Linear for layer in model.children()) > 1
        and all(
            type(layer) in (nn.Linear, nn.ReLU, nn.Tanh) or (type(layer) is nn.Flatten and place == 0)
            for place, layer in enumerate(model.children())
        )
        and type(next(layer for layer in model.children() if type(layer) is not nn.Flatten)) is nn.Linear
    )


@dataclass
class _Stack:
    """One layer of all sites. weight: [sites, out, in]; bias: [sites, 1, out]; x: what came in last."""

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    x: torch.Tensor

    def forward(self, x: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """[active, batch, in] → [active, batch, out]."""
        self.x, active = x, len(x)
        weight = self.weight[:active]
        out = scratch(f"{self.name} out", (active, x.shape[1], weight.shape[1]))
        if self.bias is None:
            return torch.bmm(x, weight.mT, out=out)
        return torch.baddbmm(self.bias[:active], x, weight.mT, out=out)

    def backward(self, delta: torch.Tensor, rate: float, scratch: Scratch) -> torch.Tensor:
        active = len(delta)
        before = torch.bmm(delta, self.weight[:active], out=scratch(f"{self.name} in", self.x.shape))
        self.weight[:active].baddbmm_(delta.mT, self.x, alpha=rate)
        self.move_bias(delta, rate)
        return before

    def move_bias(self, delta: torch.Tensor, rate: float) -> None:
        if self.bias is not None:
            self.bias[: len(delta)].add_(delta.sum(1, keepdim=True), alpha=rate)


@dataclass
class _First:
    """The first layer of all sites: it takes the rows of a block of steps in advance and moves once for them all.

    rows: [active, n, in] of the block; outputs: [active, n, out] of them by the weights as they stand; products of the
    rows with each other; deltas: loss gradients by output, of the rows that have passed.
    """

    stack: _Stack
    rows: torch.Tensor
    outputs: torch.Tensor
    products: torch.Tensor
    deltas: torch.Tensor

    @classmethod
    def looking(cls, stack: _Stack, rows: torch.Tensor, common: bool, scratch: Scratch) -> _First:
        """common: whether the weights of all sites are still one, so that the outputs are one product."""
        active, count, _ = rows.shape
        outputs = scratch("ahead", (active, count, stack.weight.shape[1]))
        if common:
            torch.mm(rows.flatten(0, 1), stack.weight[0].t(), out=outputs.flatten(0, 1))
        else:
            torch.bmm(rows, stack.weight[:active].mT, out=outputs)
        products = torch.bmm(rows, rows.mT, out=scratch("products", (active, count, count)))
        return cls(stack, rows, outputs, products, scratch("deltas", outputs.shape).zero_())

    def forward(self, active: int, now: slice, rate: float, scratch: Scratch) -> torch.Tensor:
        """The outputs [active, batch, out] of a step's rows, under what the steps before moved."""
        out, past = self.outputs[:active, now], now.start
        if past:
            moved = scratch("moved", out.shape)
            torch.bmm(self.products[:active, now, :past], self.deltas[:active, :past], out=moved)
            out = torch.add(out, moved, alpha=rate, out=moved)
        if self.stack.bias is not None:
            out = torch.add(out, self.stack.bias[:active], out=scratch("first out", out.shape))
        return out

    def backward(self, delta: torch.Tensor, now: slice, rate: float) -> None:
        self.deltas[: len(delta), now] = delta
        self.stack.move_bias(delta, rate)

    def move(self, rate: float) -> None:
        self.stack.weight[: len(self.rows)].baddbmm_(self.deltas.mT, self.rows, alpha=rate)


class DenseChain:
    """Bare SGD in lockstep; any other local work is done as `sequential` does it."""

    together = True

    def __init__(self, model: nn.Sequential, layout: Layout, chunk: int = 8) -> None:
        self.name, self.chunk = f"dense-{chunk}", chunk
        self._otherwise = sequential.Sequential(model, layout)
        self._layout, self._scratch = layout, Scratch()
        children = [(name, layer) for name, layer in model.named_children() if type(layer) is not nn.Flatten]
        self._first, self._chain = children[0][0], children[1:]
        last = children[-1][1]
        assert isinstance(last, nn.Linear)
        self._outputs = last.out_features

    def __call__(
        self,
        start: torch.Tensor,
        steps: Steps,
        work: LocalWork,
        *,
        correction: torch.Tensor | None = None,
        anchor: torch.Tensor | None = None,
        measure_loss: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not bare(work, correction):
            return self._otherwise(start, steps, work, correction=correction, anchor=anchor, measure_loss=measure_loss)
        plan, scratch = lockstep(steps), self._scratch
        sites, _, batch = plan.index.shape
        start = start if start.dim() == 1 else plan.sorted(start)
        parts = self._layout.unflatten(start)
        first = self._stack(self._first, parts, sites)
        chain = [
            self._stack(name, parts, sites) if type(layer) is nn.Linear
            else Rectify() if type(layer) is nn.ReLU else Tangent()
            for name, layer in self._chain
        ]  # fmt: skip
        shape = (*plan.index.shape, self._outputs)
        wanted = wanted_outputs(plan.y, scratch("wanted", shape))
        outputs = scratch("outputs", shape).zero_() if measure_loss else None
        rate, block = -work.learning_rate / (batch if plan.share is None else 1), max(1, BLOCK // batch)
        for begin in range(0, len(plan.active), block):
            index = plan.index[: plan.active[begin], begin : begin + block].flatten(1)
            rows = gather(steps.x, index.reshape(-1), torch.float32, scratch).view(*index.shape, -1)
            ahead = _First.looking(first, rows, begin == 0 and start.dim() == 1, scratch)
            for step in range(begin, min(begin + block, len(plan.active))):
                now = slice((step - begin) * batch, (step - begin + 1) * batch)
                self._step(ahead, chain, plan, step, now, wanted, outputs, rate)
            ahead.move(rate)
        moves = self._moves([first, *(layer for layer in chain if isinstance(layer, _Stack))], parts, sites)
        own_steps = plan.sorted(torch.from_numpy(steps.steps))
        losses = torch.zeros(sites) if outputs is None else mean_losses(outputs, plan.y, plan.share, own_steps)
        return plan.restored(moves), plan.restored(losses)

    def _step(
        self,
        first: _First,
        chain: Sequence[_Stack | Rectify | Tangent],
        plan: Lockstep,
        step: int,
        now: slice,
        wanted: torch.Tensor,
        outputs: torch.Tensor | None,
        rate: float,
    ) -> None:
        """One step of the sites that still work. now: its rows in the first layer's block."""
        active, scratch = plan.active[step], self._scratch
        out = first.forward(active, now, rate, scratch)
        for layer in chain:
            out = layer.forward(out, scratch) if isinstance(layer, _Stack) else layer.forward(out)
        if outputs is not None:
            outputs[:active, step] = out
        delta = pull_of_loss(out, wanted[:active, step], scratch("delta", out.shape))
        if plan.share is not None:
            delta.mul_(plan.share[:active, step, :, None])
        for layer in reversed(chain):
            delta = (
                layer.backward(delta, rate, scratch) if isinstance(layer, _Stack) else layer.backward(delta, True)
            )  # fmt: skip
        first.backward(delta, now, rate)

    def _stack(self, name: str, parts: Mapping[str, torch.Tensor], sites: int) -> _Stack:
        """The layer's weights at the start [out, in] or [sites, out, in], copied for every site."""
        weight, bias = _names(name)
        stacked = self._scratch(weight, (sites, *parts[weight].shape[-2:])).copy_(parts[weight])
        if bias not in parts:
            return _Stack(name, stacked, None, stacked)
        own = parts[bias].unsqueeze(-2)
        return _Stack(name, stacked, self._scratch(bias, (sites, *own.shape[-2:])).copy_(own), stacked)

    def _moves(self, stacks: Sequence[_Stack], parts: Mapping[str, torch.Tensor], sites: int) -> torch.Tensor:
        """How far the weights are from the start, [sites, size]."""
        moves = self._scratch("moves", (sites, self._layout.size))
        update = self._layout.unflatten(moves)
        for stack in stacks:
            weight, bias = _names(stack.name)
            torch.sub(stack.weight, parts[weight], out=update[weight])
            if stack.bias is not None:
                torch.sub(stack.bias[:, 0], parts[bias], out=update[bias])
        return moves


def _names(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def dense(model: nn.Module, layout: Layout, *, chunk: int = 8) -> DenseChain:
    assert isinstance(model, nn.Sequential)
    return DenseChain(model, layout, chunk)
