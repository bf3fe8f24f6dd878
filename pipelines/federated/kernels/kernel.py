"""What a kernel is: local SGD of a chunk of sites, and nothing else. It knows no rounds, rules or wires."""

from __future__ import annotations

from typing import Protocol

import torch

from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


class Kernel(Protocol):
    """A kernel owns its buffers, so it serves one caller at a time, and what it returns stands until its next call.

    name: as the chooser knows it; chunk: how many sites it likes at a time (any number is served); together: whether
    the sites of a chunk share its calls, so that a lone one says nothing of their speed.
    """

    @property
    def name(self) -> str: ...
    @property
    def chunk(self) -> int: ...
    @property
    def together(self) -> bool: ...

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
        """Deltas (end minus start) float32 [sites, size], and each site's mean batch loss [sites] (0 if not measured).

        start: [size], the same for every site, or [sites, size]; correction: [sites, size], added to every gradient;
        anchor: [size], what the proximal term pulls to, `start` where it is None.
        """
        ...
