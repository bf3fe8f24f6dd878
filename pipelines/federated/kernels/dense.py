"""Chains of dense layers, the sites of a chunk side by side: every product is one over all their matrices.

For models whose weights, stacked, stay near the processor: a step costs its calls once for the chunk and not for each
site. The first layer knows the rows of the steps to come, so its matrices move once for a block of steps (see
`deferred.Ahead`, which does the same for one site), and all sites' first block is one product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipelines.federated.kernels import sequential
from pipelines.federated.kernels.deferred import BLOCK
from pipelines.federated.kernels.descent import bare
from pipelines.federated.kernels.layers import Rectify, Tangent
from pipelines.federated.kernels.lockstep import lockstep
from pipelines.federated.kernels.rows import gather
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.loss import mean_losses
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


class DenseChain:
    """Bare SGD in lockstep; any other local work is done as `sequential` does it."""

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
        rate = -work.learning_rate / (batch if plan.share is None else 1)
        parts = self._layout.unflatten(start)
        first = self._stack(self._first, parts, sites)
        chain = [
            self._stack(name, parts, sites) if type(layer) is nn.Linear
            else Rectify() if type(layer) is nn.ReLU else Tangent()
            for name, layer in self._chain
        ]  # fmt: skip
        outputs = scratch("outputs", (*plan.index.shape, self._outputs)).zero_() if measure_loss else None
        block = max(1, BLOCK // batch)
        for begin in range(0, len(plan.active), block):
            index = plan.index[: plan.active[begin], begin : begin + block].flatten(1)
            rows = gather(steps.x, index.reshape(-1), torch.float32, scratch).view(*index.shape, -1)
            ahead = scratch("ahead", (*index.shape, first.weight.shape[1]))
            if begin == 0 and start.dim() == 1:
                torch.mm(rows.flatten(0, 1), first.weight[0].t(), out=ahead.flatten(0, 1))
            else:
                torch.bmm(rows, first.weight[: len(rows)].mT, out=ahead)
            products = torch.bmm(rows, rows.mT, out=scratch("products", (*index.shape, index.shape[1])))
            deltas = scratch("deltas", ahead.shape).zero_()
            for step in range(begin, min(begin + block, len(plan.active))):
                active, past = plan.active[step], (step - begin) * batch
                now = slice(past, past + batch)
                out = ahead[:active, now]
                if past:
                    moved = scratch("moved", out.shape)
                    torch.bmm(products[:active, now, :past], deltas[:active, :past], out=moved)
                    out = torch.add(out, moved, alpha=rate, out=moved)
                if first.bias is not None:
                    out = torch.add(out, first.bias[:active], out=scratch("first out", out.shape))
                for layer in chain:
                    out = layer.forward(out, scratch) if isinstance(layer, _Stack) else layer.forward(out)
                if outputs is not None:
                    outputs[:active, step] = out
                delta = self._pull_of_loss(out, plan.y[:active, step])
                if plan.share is not None:
                    delta.mul_(plan.share[:active, step, :, None])
                for layer in reversed(chain):
                    delta = (
                        layer.backward(delta, rate, scratch) if isinstance(layer, _Stack)
                        else layer.backward(delta, True)
                    )  # fmt: skip
                deltas[:active, now] = delta
                first.move_bias(delta, rate)
            first.weight[: len(rows)].baddbmm_(deltas.mT, rows, alpha=rate)
        moves = scratch("moves", (sites, self._layout.size))
        update = self._layout.unflatten(moves)
        for stack in (first, *(layer for layer in chain if isinstance(layer, _Stack))):
            weight, bias = _names(stack.name)
            torch.sub(stack.weight, parts[weight], out=update[weight])
            if stack.bias is not None:
                torch.sub(stack.bias[:, 0], parts[bias], out=update[bias])
        own_steps = plan.sorted(torch.from_numpy(steps.steps))
        losses = torch.zeros(sites) if outputs is None else mean_losses(outputs, plan.y, plan.share, own_steps)
        return plan.restored(moves), plan.restored(losses)

    def _stack(self, name: str, parts: dict[str, torch.Tensor], sites: int) -> _Stack:
        """The layer's weights at the start [out, in] or [sites, out, in], copied for every site."""
        weight, bias = _names(name)
        stacked = self._scratch(weight, (sites, *parts[weight].shape[-2:])).copy_(parts[weight])
        if bias not in parts:
            return _Stack(name, stacked, None, stacked)
        own = parts[bias].unsqueeze(-2)
        return _Stack(name, stacked, self._scratch(bias, (sites, *own.shape[-2:])).copy_(own), stacked)

    def _pull_of_loss(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Gradient of the sum of the rows' losses by the outputs [active, batch, classes]; y: [active, batch]."""
        delta = self._scratch("delta", outputs.shape)
        if self._outputs == 1:
            return torch.sigmoid(outputs, out=delta).sub_(y[..., None])
        torch.softmax(outputs, 2, out=delta)
        return delta.scatter_add_(2, y[..., None], torch.full((1, 1, 1), -1.0).expand(*y.shape, 1))


def _names(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def dense(model: nn.Module, layout: Layout, *, chunk: int = 8) -> DenseChain:
    assert isinstance(model, nn.Sequential)
    return DenseChain(model, layout, chunk)
