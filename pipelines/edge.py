"""Predictions where there is no network: with an exported graph and a local log, without a service, torch or registry.

In go an exported folder and pictures; out come answers, each of them durably in the local log before it is given. The
local log is a spool (monitoring/spool.py) of rows as the service takes them, each with the name of its file: a kill in
the middle of a write costs nothing that was answered. onnxruntime (`fedloop[edge]`) runs graphs here alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.errors import BadInput, Missing
from models.images import ImageInput, Images, decode_png, encode_png
from monitoring.spool import Spool
from pipelines.serving_wire import UploadedRow, prediction_id, sentence

GRAPH, INT8, ABOUT = "model.onnx", "model.int8.onnx", "model.json"
CHUNK = 32
"""Pictures that share a forward pass and a segment of the local log."""
DIGITS = 6  # of a probability, as at the service
_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Graph:
    """An exported graph that is what its folder says. model: the registered model's name."""

    model: str
    version: int
    classes: Sequence[str]
    input: ImageInput
    session: Any


@dataclass(frozen=True)
class Answer:
    """What is said of a picture: its class, or why it has none (and then nothing else)."""

    file: Path
    refused: str | None = None
    prediction_id: str = ""
    name: str = ""
    confidence: float = 0.0
    probabilities: Sequence[float] = ()


def seal(about: Mapping[str, Any], graph: bytes) -> str:
    """The checksum of a graph with what model.json says of it, the checksums apart."""
    said = json.dumps({key: value for key, value in about.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(said.encode() + graph).hexdigest()


def open_graph(folder: Path, int8: bool = False) -> Graph:
    """The graph of a folder that `fedloop export` wrote.

    Raises:
        Missing: there is none, or `fedloop[edge]` is not installed.
        BadInput: graph and model.json are not what was exported together.
    """
    name = INT8 if int8 else GRAPH
    again = f"export it anew with `fedloop export --onnx FOLDER{' --int8' if int8 else ''}`"
    try:
        about, graph = json.loads((folder / ABOUT).read_text()), (folder / name).read_bytes()
        fits = about["sha256"][name] == seal(about, graph)
    except OSError as error:
        raise Missing(f"{error.filename} cannot be read ({error.strerror}); {again}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder / ABOUT} does not describe {name}: it is damaged, or of an older release; {again}"
        ) from error
    if not fits:
        raise BadInput(f"{folder / name} is not the graph that {ABOUT} beside it describes, or one is damaged; {again}")
    height, width, channels = about["input"]
    schema = ImageInput(channels, height, width)
    return Graph(about["model"], about["version"], about["classes"], schema, open_session(graph))


def open_session(graph: bytes) -> Any:
    """A session of onnxruntime on one thread."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Missing(f"{error.name} is not installed; `pip install 'fedloop[edge]'` brings it") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def probabilities(session: Any, images: Images) -> NDArray[np.float32]:
    """[n, classes] of images [n, height, width, channels]."""
    # As models.images.to_tensor does, without torch.
    floats = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255.0)
    return np.asarray(session.run(None, {"images": floats})[0])


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and of folders the PNG and JPEG files by name.

    Raises:
        BadInput: there are none.
    """
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
    if not found:
        raise BadInput(f"there is no PNG or JPEG file in {', '.join(map(str, paths))}")
    return found


def predict(graph: Graph, pictures: Sequence[Path], site: str, log: Path) -> Iterator[Answer]:
    """An answer for each picture, in their order, given once its row is in the local log.

    Raises:
        BadInput: the site cannot be called so.
        Missing: the local log cannot be written; what was answered before is in it.
    """
    spool = Spool(log)
    for start in range(0, len(pictures), CHUNK):
        answers, rows = _answers(graph, pictures[start : start + CHUNK], site)
        try:
            if rows:
                spool.append(rows)
            spool.seal()  # an upload that runs meanwhile may take it
        except OSError as error:
            said = f"the local log {log} cannot be written ({error.strerror}), so nothing more is answered"
            raise Missing(f"{said}; make room, or name another folder with --log") from error
        yield from answers


def _answers(graph: Graph, files: Sequence[Path], site: str) -> tuple[list[Answer], list[dict[str, Any]]]:
    images: list[NDArray[np.uint8] | str] = [_read(file, graph.input) for file in files]
    good = [image for image in images if not isinstance(image, str)]
    found = probabilities(graph.session, np.stack(good)).astype(np.float64) if good else np.zeros((0, 1))
    # Those of an int8 graph are multiples of 1/256, and their sum is not quite 1.
    shares = iter((found / found.sum(axis=1, keepdims=True)).round(DIGITS).tolist())
    answers, rows, now = [], [], time.time()
    for file, image in zip(files, images, strict=True):
        if isinstance(image, str):
            answers.append(Answer(file, image))
            continue
        own, name = next(shares), f"edge-{uuid.uuid4().hex}"
        try:
            row = UploadedRow(
                model=graph.model, model_version=graph.version, site=site, request_id=name, at=now,
                probabilities=own, png=base64.b64encode(encode_png(image)).decode(),
            )  # fmt: skip
        except ValidationError as error:
            raise BadInput(sentence(error.errors())) from error
        rows.append(row.model_dump() | {"file": str(file)})
        best = own.index(max(own))
        answers.append(Answer(file, None, prediction_id(site, name), graph.classes[best], own[best], own))
    return answers, rows


def _read(file: Path, schema: ImageInput) -> NDArray[np.uint8] | str:
    try:
        return decode_png(file.read_bytes(), schema)
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    except BadInput as error:
        return str(error)
