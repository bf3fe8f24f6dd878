"""Chains of dense and convolutional layers by hand-written gradients, one site after the other.

No autograd, no allocation per site; where the local work is bare SGD, a layer's gradient and step are one product.
"""

from __future__ import annotations

import torch
from torch import nn

from pipelines.federated.kernels.deferred import BLOCK, LARGE, Ahead, Deferred
from pipelines.federated.kernels.descent import bare, descend, shares
from pipelines.federated.kernels.layers import (
    Convolution,
    Dense,
    FirstConvolution,
    Flat,
    Layer,
    Parametric,
    Pool,
    Rectify,
    Tangent,
)
from pipelines.federated.kernels.packing import Packing
from pipelines.federated.kernels.plain import lone_chunk
from pipelines.federated.kernels.rows import gather, widths
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.loss import mean_losses, pull_of_loss, wanted_outputs
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


def able(model: nn.Module) -> bool:
    """Whether the model is a chain of the layers known here that ends in a dense one."""
    chain = list(model) if type(model) is nn.Sequential else []
    return (
        bool(chain)
        and type(chain[-1]) is nn.Linear
        and all(_known(layer) for layer in chain)
        and len({id(layer) for layer in chain}) == len(chain)
        and all(parameter.requires_grad for parameter in model.parameters())
    )


def _known(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.MaxPool2d:
        window = layer.kernel_size
        plain = layer.stride == window and layer.padding == 0 and layer.dilation == 1
        return isinstance(window, int) and plain and not layer.ceil_mode and not layer.return_indices
    if type(layer) is nn.Flatten:
        return layer.start_dim == 1 and layer.end_dim == -1
    return type(layer) in (nn.Linear, nn.ReLU, nn.Tanh)


def _layers(model: nn.Sequential, scratch: Scratch, dtype: torch.dtype) -> list[Layer]:
    chain = list(model.named_children())
    for position in range(len(chain) - 1):
        # The greatest of the rectified is the rectified greatest, of which there are fewer.
        if type(chain[position][1]) is nn.ReLU and type(chain[position + 1][1]) is nn.MaxPool2d:
            chain[position], chain[position + 1] = chain[position + 1], chain[position]
    layers: list[Layer] = []
    for name, layer in chain:
        if isinstance(layer, nn.Linear):
            layers.append(Dense(name, scratch, (layer.out_features, layer.in_features)))
        elif isinstance(layer, nn.Conv2d):
            unit = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
            by_patches = not layers and layer.in_channels == 1 and unit and dtype == torch.float32
            layers.append((FirstConvolution if by_patches else Convolution)(name, scratch, layer))
        elif isinstance(layer, nn.MaxPool2d):
            assert isinstance(layer.kernel_size, int)
            layers.append(Pool(layer.kernel_size))
        elif isinstance(layer, nn.ReLU):
            layers.append(Rectify())
        else:
            layers.append(Tangent() if isinstance(layer, nn.Tanh) else Flat())
    return layers


class Sequential:
    """dtype: of the computation; the weights are float32."""

    together = False

    def __init__(self, model: nn.Sequential, layout: Layout, dtype: torch.dtype = torch.float32) -> None:
        self.name = "sequential" + ("" if dtype == torch.float32 else "-bf16")
        self.chunk = lone_chunk(layout.size)
        self._scratch, self._dtype = Scratch(), dtype
        self._packing = Packing(layout, channels_last=True)
        self._w, self._gradient = torch.zeros(layout.size), torch.zeros(layout.size)
        self._computed_with = self._w if dtype == torch.float32 else torch.zeros(layout.size, dtype=dtype)
        self._layers = _layers(model, self._scratch, dtype)
        self._first = next(i for i, layer in enumerate(self._layers) if isinstance(layer, Parametric))
        last = list(model.children())[-1]
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
        sites, size = len(steps), self._w.numel()
        count, batch = steps.index.shape[1:]
        pack, scratch, w = self._packing.pack, self._scratch, self._w
        deltas = scratch("deltas", (sites, size))
        own_start, velocity = scratch("start", (size,)), scratch("velocity", (size,)) if work.momentum else None
        y = steps.y[steps.index]
        share = None if steps.weight is None else shares(steps.weight)
        real = widths(steps)
        outputs = scratch("outputs", (sites, count, batch, self._outputs)).zero_()
        wanted = wanted_outputs(y, scratch("wanted", (*y.shape, self._outputs)))
        pull = None if anchor is None else pack(anchor, scratch("anchor", (size,)))
        in_place = bare(work, correction)
        rate = (-work.learning_rate if in_place else 1.0) / (batch if share is None else 1)
        layers = self._suited(count, batch, in_place)
        self._bind(layers, rate, in_place)
        late = {layer.weight_name: layer for layer in layers if isinstance(layer, Deferred)}
        ahead = next((layer for layer in layers if isinstance(layer, Ahead)), None)
        block = BLOCK // batch if ahead is not None else 1
        starts, weights = self._packing.views(own_start), self._packing.views(w)
        moving = [name for name in weights if name not in late]
        for site in range(sites):
            if site == 0 or start.dim() == 2:
                w.copy_(pack(start[site] if start.dim() == 2 else start, own_start))
                self._follow()
            else:
                torch._foreach_copy_([weights[name] for name in moving], [starts[name] for name in moving])
                self._follow(moving)
            if velocity is not None:
                velocity.zero_()
            for layer in late.values():
                layer.begin(count * batch)
            turn = None if correction is None else pack(correction[site], scratch("correction", (size,)))
            own_steps = int(steps.steps[site])
            for step in range(own_steps):
                rows = slice(0, batch if ahead is not None else int(real[site, step]))
                if step % block == 0:
                    coming = steps.index[site, step : min(step + block, own_steps), rows].flatten()
                    x = gather(steps.x, coming, self._dtype, scratch)
                    if ahead is not None:
                        ahead.look(x.flatten(1))
                out = self._forward(layers, x[: rows.stop], outputs[site, step, rows])
                delta = pull_of_loss(out, wanted[site, step, rows], scratch("delta", out.shape))
                if share is not None:
                    delta.mul_(share[site, step, rows, None])
                self._backward(layers, delta.to(self._dtype))
                if not in_place:
                    descend(w, self._gradient, velocity, work, turn, own_start if pull is None else pull)
                    self._follow()
            update = self._packing.layout.unflatten(deltas[site])
            for name in moving:
                torch.sub(weights[name], starts[name], out=update[name])
            for name, layer in late.items():
                layer.update(update[name])
        if not measure_loss:
            return deltas, torch.zeros(sites)
        return deltas, mean_losses(outputs, y, share, torch.from_numpy(steps.steps))

    def _suited(self, count: int, batch: int, in_place: bool) -> list[Layer]:
        """The layers in the form that is fastest for sites of `count` batches."""
        layers = list(self._layers)
        for position, layer in enumerate(layers if in_place else []):
            if not isinstance(layer, Dense):
                continue
            outs, ins = layer.shape
            if outs * ins >= LARGE and count * batch <= min(outs, ins) // 2:
                layers[position] = Deferred(layer.name, self._scratch, layer.shape)
            elif position == self._first and self._dtype == torch.float32 and min(count, BLOCK // batch) >= 2:
                layers[position] = Ahead(layer.name, self._scratch, layer.shape)
        return layers

    def _bind(self, layers: list[Layer], rate: float, in_place: bool) -> None:
        weights = self._packing.views(self._computed_with)
        target = self._packing.views(self._w if in_place else self._gradient)
        for layer in layers:
            if isinstance(layer, Parametric):
                layer.bind(weights, target, rate, in_place)

    def _follow(self, names: list[str] | None = None) -> None:
        """Weights of another type than float32 become what the float32 ones are, all or some."""
        if self._computed_with is self._w:
            return
        if names is None:
            self._computed_with.copy_(self._w)
            return
        own, from_ = self._packing.views(self._computed_with), self._packing.views(self._w)
        torch._foreach_copy_([own[name] for name in names], [from_[name] for name in names])

    def _forward(self, layers: list[Layer], x: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for layer in layers:
            x = layer.forward(x)
        return outputs.copy_(x)

    def _backward(self, layers: list[Layer], delta: torch.Tensor) -> None:
        for position in range(len(layers) - 1, self._first - 1, -1):
            delta = layers[position].backward(delta, position > self._first)


def sequential(model: nn.Module, layout: Layout, *, dtype: torch.dtype = torch.float32) -> Sequential:
    assert isinstance(model, nn.Sequential)
    return Sequential(model, layout, dtype)
