"""Checkpoints: a training run's state on disk. Written whole or not at all, few in number, and checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipelines.federated.files import write_atomically
from pipelines.federated.plan import History, RoundRecord, TrainingState
from pipelines.federated.server_optimizers import Moments

KEPT = 3
"""Checkpoints kept: the latest and two before it, in case the latest is torn."""

LOG = logging.getLogger("fedloop.training")


def checkpoint(folder: Path, state: TrainingState) -> None:
    """Write the state atomically and drop the oldest ones."""
    tensors = {f"parameters/{name}": tensor for name, tensor in state.parameters.items()}
    for moment, values in state.moments.items():
        tensors |= {f"moments/{moment}/{name}": tensor for name, tensor in values.items()}
    tensors |= {f"context/{name}": tensor for name, tensor in state.context.items()}
    tensors["shared/"] = state.shared
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    head = {"round": str(state.round), "log": json.dumps([asdict(record) for record in state.log])}
    whole = head | {"sha256": _fingerprint(tensors, head)}
    write_atomically(folder / f"round-{state.round:06d}.safetensors", save(tensors, whole))
    for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()


def latest(folder: Path) -> TrainingState | None:
    """The newest state that can be read whole; a torn or altered file is passed over with a warning."""
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            return _read(path)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            LOG.warning("checkpoint %s is damaged (%s); trying the one before it", path, error)
    return None


def _read(path: Path) -> TrainingState:
    with safe_open(path, framework="pt") as file:
        head = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if _fingerprint(tensors, head) != head["sha256"]:
        raise ValueError("its content does not match its checksum")
    parts: dict[str, dict[str, torch.Tensor]] = {"parameters": {}, "moments": {}, "context": {}, "shared": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = tensor
    moments: Moments = {}
    for name, tensor in parts["moments"].items():
        moment, _, parameter = name.partition("/")
        moments.setdefault(moment, {})[parameter] = tensor
    log = History(RoundRecord(**record) for record in json.loads(head["log"]))
    shared = parts["shared"][""]
    return TrainingState(int(head["round"]), parts["parameters"], moments, log, shared, parts["context"])


def _fingerprint(tensors: Mapping[str, torch.Tensor], head: Mapping[str, str]) -> str:
    hasher = hashlib.sha256(repr((head["round"], head["log"])).encode())
    for name in sorted(tensors):
        hasher.update(repr((name, tensors[name].dtype, tuple(tensors[name].shape))).encode())
        hasher.update(tensors[name].contiguous().numpy().tobytes())
    return hasher.hexdigest()
