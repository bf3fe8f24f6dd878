"""Layers with hand-written gradients, for the sites that are trained one after the other.

A layer remembers what its backward pass needs of the last forward pass; images are channels-last throughout, which
is what pooling needs to be fast. A layer with parameters adds `rate` · gradient to `target`: the weights themselves
(rate = −learning rate: gradient and step are then one product) or the gradient vector (`keep` 0, rate 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import conv2d

from pipelines.federated.kernels.scratch import Scratch

Views = Mapping[str, torch.Tensor]
ATEN = torch.ops.aten


class Layer(Protocol):
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...
    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        """Loss gradient by output → by input (anything where no layer before asks for it); parameters move."""
        ...


class Parametric:
    """What layers with a weight and maybe a bias share: where to compute from and where the gradient goes.

    weights: what is computed with; target: what the gradient is added to. Where the two are not of one type
    (bfloat16 computation, float32 weights) the former follows the latter as soon as it has moved.
    """

    def __init__(self, name: str, scratch: Scratch) -> None:
        self.name, self._scratch = name, scratch
        prefix = f"{name}." if name else ""
        self.weight_name, self._bias_name = f"{prefix}weight", f"{prefix}bias"
        self.weight = self.weight_target = torch.empty(0)
        self.bias: torch.Tensor | None = None
        self.bias_target: torch.Tensor | None = None
        self.rate, self.keep, self._follow = 1.0, 0, False

    def bind(self, weights: Views, target: Views, rate: float, in_place: bool) -> None:
        self.weight, self.bias = weights[self.weight_name], weights.get(self._bias_name)
        self.weight_target, self.bias_target = target[self.weight_name], target.get(self._bias_name)
        self.rate, self.keep = rate, int(in_place)
        self._follow = in_place and self.weight.dtype != self.weight_target.dtype

    def _add(self, target: torch.Tensor, gradient: torch.Tensor) -> None:
        if self.keep:
            target.add_(gradient, alpha=self.rate)
        else:
            torch.mul(gradient, self.rate, out=target)


class Dense(Parametric):
    """x [n, in] → [n, out]; shape: (out, in)."""

    def __init__(self, name: str, scratch: Scratch, shape: tuple[int, int]) -> None:
        super().__init__(name, scratch)
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        out = self._scratch(f"{self.name} out", (len(x), len(self.weight)), x.dtype)
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        before = delta
        if further:
            before = torch.mm(delta, self.weight, out=self._scratch(f"{self.name} in", self.x.shape, delta.dtype))
        if delta.dtype == torch.float32:
            self.weight_target.addmm_(delta.t(), self.x, beta=self.keep, alpha=self.rate)
        else:
            self._add(self.weight_target, delta.t().mm(self.x))
            if self._follow:
                self.weight.copy_(self.weight_target)
        self._move_bias(delta)
        return before

    def _move_bias(self, delta: torch.Tensor) -> None:
        if self.bias is not None and self.bias_target is not None:
            self._add(self.bias_target, delta.sum(0))
            if self._follow:
                self.bias.copy_(self.bias_target)


class Convolution(Parametric):
    """x [n, in, h, w] channels-last → [n, out, h', w']."""

    def __init__(self, name: str, scratch: Scratch, layer: nn.Conv2d) -> None:
        super().__init__(name, scratch)
        self._stride, self._dilation, self._groups = list(layer.stride), list(layer.dilation), layer.groups
        assert not isinstance(layer.padding, str)
        self._padding = list(layer.padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        return conv2d(x, self.weight, self.bias, self._stride, self._padding, self._dilation, self._groups)

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        before, weight, bias = ATEN.convolution_backward(
            delta,
            self.x,
            self.weight,
            None if self.bias is None else [len(self.bias)],
            self._stride,
            self._padding,
            self._dilation,
            False,
            [0, 0],
            self._groups,
            [further, True, self.bias is not None],
        )
        self._add(self.weight_target, weight)
        if self.bias_target is not None:
            self._add(self.bias_target, bias)
        if self._follow:
            self.weight.copy_(self.weight_target)
            if self.bias is not None and self.bias_target is not None:
                self.bias.copy_(self.bias_target)
        return before if further else delta


class FirstConvolution(Convolution):
    """A first layer over few channels in float32, as a product with the patches: oneDNN is slow with one channel.

    Stride and dilation 1; the patches serve the backward pass too. A patch is a column of its matrix, so that whole
    lines of the picture are copied at once.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        outs, _, kh, kw = self.weight.shape
        ph, pw = self._padding
        padded = self._scratch("padded", (channels, n, height + 2 * ph, width + 2 * pw))
        if ph or pw:
            padded.zero_()
        padded[:, :, ph : ph + height, pw : pw + width].copy_(x.transpose(0, 1))
        h, w = height + 2 * ph - kh + 1, width + 2 * pw - kw + 1
        plane, picture, line, _ = padded.stride()
        windows = padded.as_strided((channels, kh, kw, n, h, w), (plane, line, 1, picture, line, 1))
        self.patches = self._scratch("patches", (channels * kh * kw, n * h * w))
        self.patches.view(windows.shape).copy_(windows)
        matrix = self.weight.reshape(outs, -1)
        out = self._scratch(f"{self.name} out", (n * h * w, outs))
        if self.bias is None:
            torch.mm(self.patches.t(), matrix.t(), out=out)
        else:
            torch.addmm(self.bias, self.patches.t(), matrix.t(), out=out)
        return out.view(n, h, w, outs).permute(0, 3, 1, 2)

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        flat = delta.permute(0, 2, 3, 1).reshape(-1, len(self.weight))
        gradient = self.patches.mm(flat)
        self._add(self.weight_target, gradient.t().view(self.weight.shape))
        if self.bias_target is not None:
            self._add(self.bias_target, flat.sum(0))
        return delta


class Rectify:
    """In place, forwards and backwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.out = x.relu_()
        return self.out

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        out: torch.Tensor = ATEN.threshold_backward.grad_input(delta, self.out, 0, grad_input=delta)
        return out


class Tangent:
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.out = x.tanh_()
        return self.out

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        out: torch.Tensor = ATEN.tanh_backward.grad_input(delta, self.out, grad_input=delta)
        return out


class Pool:
    """The greatest of each window. Its tensors are kept: new ones would be pushed through the caches at every step."""

    def __init__(self, window: int) -> None:
        self._shape = [window, window], [window, window], [0, 0], [1, 1], False
        self._out = self._which = self._before = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        if self._before.shape != x.shape or self._before.dtype != x.dtype:
            self._before = torch.empty_like(x)
            self._out, self._which = ATEN.max_pool2d_with_indices(x, *self._shape)
        else:
            ATEN.max_pool2d_with_indices.out(x, *self._shape, out=self._out, indices=self._which)
        return self._out

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        before: torch.Tensor = ATEN.max_pool2d_with_indices_backward.grad_input(
            delta, self.x, *self._shape, self._which, grad_input=self._before
        )
        return before


class Flat:
    """[n, ...] → [n, features], in torch's order of features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shape = x.shape
        return x.flatten(1)

    def backward(self, delta: torch.Tensor, further: bool) -> torch.Tensor:
        before = delta.view(self.shape)
        return before.contiguous(memory_format=torch.channels_last) if before.dim() == 4 else before
