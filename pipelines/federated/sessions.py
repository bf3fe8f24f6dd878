"""What becomes of a device that was selected: it downloads, trains and uploads, unless something comes between.

Configuration, training and reporting each take as long as the device's network and processor need. A session ends
early where the device is unplugged or leaves its network, where its user takes it up (a hazard), or where a transfer
breaks. The fates are the session shapes of Bonawitz et al., 2019, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.population import Ids
from pipelines.federated.fleet import Fleet
from pipelines.federated.rest import Floats

FATES = ("finished", "late", "dropped_configuration", "dropped_training", "dropped_reporting")
"""How a session can end; late: the server closed the round, or gave the device up, before it ended by itself."""
FINISHED, LATE, IN_CONFIGURATION, IN_TRAINING, IN_REPORTING = range(len(FATES))


@dataclass(frozen=True)
class SessionCost:
    """What a session asks of a device.

    down_bytes: plan and parameters; up_bytes: the update; epochs: passes over its examples; work: of one example, in
    units of the model that `Fleet.speed_median` is measured in.
    """

    down_bytes: float
    up_bytes: float
    epochs: float = 1.0
    work: float = 1.0


@dataclass(frozen=True)
class Sessions:
    """Sessions as parallel arrays [devices], each as it would go if the server waited for ever.

    starts_s, configured_s, trained_s, reported_s: when its phases would end; ends_s: when it ends; fates: of FATES,
    and never LATE.
    """

    starts_s: Floats
    configured_s: Floats
    trained_s: Floats
    reported_s: Floats
    ends_s: Floats
    fates: Ids

    def moved(self, closed_s: Floats | float, cost: SessionCost) -> tuple[Ids, Ids]:
        """Bytes (down, up) that each session moved until it ended or was told, at closed_s, that all is over."""
        at = np.minimum(self.ends_s, closed_s)
        down = np.clip((at - self.starts_s) / (self.configured_s - self.starts_s), 0.0, 1.0) * cost.down_bytes
        up = np.clip((at - self.trained_s) / (self.reported_s - self.trained_s), 0.0, 1.0) * cost.up_bytes
        return np.rint(down).astype(np.int64), np.rint(up).astype(np.int64)


def shapes(fates: Ids) -> dict[str, int]:
    """How many sessions [devices] ended in which way."""
    return dict(zip(FATES, np.bincount(fates, minlength=len(FATES)).tolist(), strict=True))


def in_words(sessions: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' in ')}" for name, count in sessions.items())


def run_sessions(
    fleet: Fleet,
    cost: SessionCost,
    ids: Ids,
    examples: Ids,
    until_s: Floats,
    starts_s: Floats | float,
    rng: np.random.Generator,
) -> Sessions:
    """The sessions of devices that start at starts_s and stay available until until_s; examples: rows they hold."""
    traits = fleet.traits(ids)
    starts = np.broadcast_to(np.asarray(starts_s, dtype=np.float64), ids.shape)
    configured = starts + fleet.latency_s + cost.down_bytes / traits.down_rate
    trained = configured + examples * (cost.epochs * cost.work) / traits.speed
    reported = trained + fleet.latency_s + cost.up_bytes / traits.up_rate
    stopped = np.minimum(until_s, starts + rng.standard_exponential(len(ids)) / traits.hazard)
    breaks = rng.random((2, len(ids)))
    for begin, end, drawn in ((starts, configured, breaks[0]), (trained, reported, breaks[1])):
        # Given that it breaks, the same draw says where.
        broken = begin + (end - begin) * drawn / max(fleet.transfer_failure, 1e-12)
        stopped = np.where(drawn < fleet.transfer_failure, np.minimum(stopped, broken), stopped)
    fates = np.select(
        [stopped >= reported, stopped < configured, stopped < trained],
        [FINISHED, IN_CONFIGURATION, IN_TRAINING],
        IN_REPORTING,
    )
    return Sessions(starts, configured, trained, reported, np.minimum(stopped, reported), fates.astype(np.int64))
