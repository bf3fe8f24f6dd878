"""What a site does with a model in one round: SGD over its own rows, and all that shapes its steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalWork:
    """One local step, in this order, for a batch's mean loss:

        g = gradient, scaled down to the L2 norm `clip_norm` where it is longer (0: never)
        g += the rule's correction (SCAFFOLD) + proximal · (w − anchor) + weight_decay · w
        v = momentum · v + g;  w −= learning_rate · v

    which is torch.optim.SGD's. updates: steps in a round whatever a site's number of rows, going round its rows as
    often as that takes; 0 leaves it to `epochs`. batch_size 0 takes all of a site's rows at once; the velocity starts
    at 0 each round. The proximal term is FedProx' (Li et al., 2020), its anchor the weights that the server sent.
    """

    epochs: int = 1
    batch_size: int = 20
    learning_rate: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    proximal: float = 0.0
    updates: int = 0
