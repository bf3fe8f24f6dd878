"""Parameters as a kernel wants them in memory: views into one flat vector, convolutions channels-last if asked.

Zeroing, clipping, correcting and stepping are then one vector operation each, whatever the number of layers.
"""

from __future__ import annotations

import torch

from pipelines.federated.layout import Layout


class Packing:
    """Between a layout's order of numbers and the one in which a kernel keeps them."""

    def __init__(self, layout: Layout, channels_last: bool = False) -> None:
        self.layout = layout
        self.turned = channels_last and any(len(shape) == 4 for shape in layout.shapes)

    def views(self, packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters in a packed vector [size], by name, in their own shapes; 4-d ones with channels last."""
        if not self.turned:
            return self.layout.unflatten(packed)
        parts = torch.split(packed, self.layout.sizes)
        return {
            name: _channels_last(part, shape) if len(shape) == 4 else part.view(shape)
            for name, shape, part in zip(self.layout.names, self.layout.shapes, parts, strict=True)
        }

    def pack(self, flat: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A vector [size] in the layout's order → `out` in the packed one."""
        if not self.turned:
            return out.copy_(flat)
        for view, part in zip(self.views(out).values(), self.layout.unflatten(flat).values(), strict=True):
            view.copy_(part)
        return out

    def unpack(self, packed: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The way back."""
        if not self.turned:
            return out.copy_(packed)
        for part, view in zip(self.layout.unflatten(out).values(), self.views(packed).values(), strict=True):
            part.copy_(view)
        return out


def _channels_last(part: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    o, i, h, w = shape
    return part.view(o, h, w, i).permute(0, 3, 1, 2)
