"""The champion as an ONNX graph, for machines without torch: checked against the original before it is kept.

The graph takes `images`, float32 [n, channels, height, width] in [0, 1], and gives `probabilities` [n, classes]. The
int8 variant is quantized statically (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018), its ranges taken from development rows, its cost measured on held-out
ones. ONNX (`fedloop[edge]`) is imported here alone; what runs a graph is in edge.py.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models import artifact
from models.errors import BadInput, Missing
from models.images import Images, read_image, to_tensor
from models.task import Rows, Task
from pipelines import edge, registry
from pipelines.edge import ABOUT, GRAPH, INT8
from pipelines.federated.files import write_atomically
from pipelines.registry import CHAMPION
from pipelines.settings import Settings

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 1e-4
"""How far a probability of the graph may be from the original's."""

CALIBRATION_ROWS = 256


@dataclass(frozen=True)
class Export:
    """What was written: the largest difference of a probability, and accuracy on held-out rows; None: no int8."""

    version: int
    rows: int
    difference: float
    accuracy: float
    int8_accuracy: float | None


def export_champion(settings: Settings, folder: Path, int8: bool) -> Export:
    """Write the champion's graph, and what it is, into a folder.

    Raises:
        Missing: no champion, or `fedloop[edge]` is not installed.
        BadInput: the graph does not answer as the original does; it is not kept.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    champion = registry.by_alias(settings, CHAMPION)
    if champion is None:
        raise Missing(f"no version of {settings.model_name!r} is champion yet; train one with `make run` or `make up`")
    task = settings.task
    module = _with_shares(artifact.load(registry.fetch(settings, champion.number), task))
    data = task.load()
    images, labels = _labelled(task, data.evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INT8).unlink(missing_ok=True)  # an earlier version's
    _write_graph(module, images[:2], folder / GRAPH)
    difference = _largest_difference(module, images, folder / GRAPH)
    if not difference <= TOLERANCE:
        (folder / GRAPH).unlink()
        raise BadInput(
            f"the graph's probabilities are off by up to {difference:.2g}, more than {TOLERANCE:g}: not kept"
        )
    quantized = None
    if int8:
        _quantize(folder, _labelled(task, data.development)[0][:CALIBRATION_ROWS])
        quantized = _accuracy(folder / INT8, images, labels)
    accuracy = _accuracy(folder / GRAPH, images, labels)
    done = Export(champion.number, len(images), difference, accuracy, quantized)
    about: dict[str, Any] = {"task": task.name, "model": settings.model_name, "classes": task.classes}
    about = json.loads(json.dumps(about | {"input": task.input.shape} | asdict(done)))  # as whoever reads it finds it
    files = [folder / name for name in ([GRAPH, INT8] if int8 else [GRAPH])]
    about["sha256"] = {file.name: edge.seal(about, file.read_bytes()) for file in files}
    write_atomically(folder / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    return done


def _with_shares(module: nn.Module) -> nn.Module:
    import torch

    return torch.nn.Sequential(module, torch.nn.Softmax(dim=1)).eval()


def _labelled(task: Task, rows: Rows) -> tuple[Images, NDArray[np.int64]]:
    """The rows that are images of the task and have a label."""
    found = []
    for image, label in zip(rows.images, rows.labels, strict=True):
        try:
            found.append((read_image(image, task.input), int(label)))  # type: ignore[arg-type]  # None is caught
        except (BadInput, TypeError, ValueError):  # ingest tells of them; here they only do not count
            continue
    return np.stack([image for image, _ in found]), np.array([label for _, label in found])


def _write_graph(module: nn.Module, images: Images, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Missing(f"{error.name} is not installed; `pip install 'fedloop[edge]'` brings it") from error
    import torch

    torch.onnx.export(
        module, (to_tensor(images),), str(path), dynamo=True, external_data=False, verbose=False,
        input_names=["images"], output_names=["probabilities"], dynamic_shapes=({0: torch.export.Dim("rows")},),
    )  # fmt: skip


def _answers(path: Path, images: Images) -> NDArray[np.float32]:
    return edge.probabilities(edge.open_session(path.read_bytes()), images)


def _largest_difference(module: nn.Module, images: Images, path: Path) -> float:
    """Over all rows, in batches of 1, 7 and all, so that a batch size that was baked in shows."""
    import torch

    with torch.inference_mode():
        original = module(to_tensor(images)).numpy()
    parts = [_answers(path, images[:1]), _answers(path, images[:7]), _answers(path, images)]
    return max(float(np.abs(part - original[: len(part)]).max()) for part in parts)


def _accuracy(path: Path, images: Images, labels: NDArray[np.int64]) -> float:
    return float((_answers(path, images).argmax(axis=1) == labels).mean())


def _quantize(folder: Path, images: Images) -> None:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(np.array_split(images, max(1, len(images) // 32)))

        def get_next(self) -> dict[str, Any] | None:
            chunk = next(self.left, None)
            return None if chunk is None else {"images": to_tensor(chunk).numpy()}

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(folder / GRAPH), str(prepared), skip_symbolic_shape=True)
    q.quantize_static(str(prepared), str(folder / INT8), Rows(), quant_format=q.QuantFormat.QDQ, per_channel=True)
    prepared.unlink()
