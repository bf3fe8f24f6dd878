"""Predictions without a network: those of the service, in the local log before they are given, or a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from edge_house import EdgeHouse, edge_house, picture, waiting
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from models.errors import BadInput, Missing
from models.images import encode_png
from pipelines import edge, export
from pipelines.serving_wire import prediction_id

OFFLINE = """
import socket, sys
def away(*_): raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = away
sys.argv = ["fedloop", *sys.argv[1:]]
from flows.cli import app
try:
    app()
finally:
    heavy = {"torch", "mlflow", "prefect", "pandas", "sqlalchemy", "fastapi"} & set(sys.modules)
    if heavy: print("imported:", heavy, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[EdgeHouse]:
    with edge_house(tmp_path_factory.mktemp("edge"), empty_registry) as made:
        export.export_champion(made.settings, graph_of(made), int8=True)
        yield made


def graph_of(house: EdgeHouse) -> Path:
    return house.settings.home / "graph"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two good pictures, one a JPEG in colour, among what is none."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode_png(picture(1)))
    (folder / "b.PNG").write_bytes(encode_png(picture(2))[:60])
    (folder / "c.png").write_bytes(encode_png(np.zeros((9, 8, 1), dtype=np.uint8)))
    Image.fromarray(np.repeat(picture(3), 3, axis=2)).save(folder / "d.jpeg", quality=95)
    (folder / "notes.txt").write_text("no picture")
    return folder


def fedloop(*words: object) -> Result:
    return CliRunner().invoke(app, ["edge", *map(str, words)])


def test_it_predicts_as_the_service_does_and_the_uploaded_row_is_found_by_the_id_that_it_said(
    house: EdgeHouse, scans: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    words = ("predict", scans, tmp_path / "gone.png", "--graph", graph_of(house), "--site", "ward", "--log", log)
    done = fedloop(*words, "--json")
    assert done.exit_code == 2
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(each["file"]).name for each in said] == ["a.png", "d.jpeg"]
    assert "b.PNG: the bytes are not a readable image" in done.stderr
    assert "c.png: the image is 8×9 pixels; this task takes 8×8 greyscale" in done.stderr
    assert "gone.png: the file cannot be read (No such file or directory)" in done.stderr
    for each in said:
        kind = {"content-type": "image/jpeg" if each["file"].endswith("jpeg") else "image/png"}
        data = Path(each["file"]).read_bytes()
        answer = house.served.client.post("/predict/image?site=s", content=data, headers=kind).json()
        assert np.allclose(each["probabilities"], answer["probabilities"], rtol=0, atol=1e-4)
        assert (each["class"], each["confidence"]) == (answer["class"], max(each["probabilities"]))
        assert each["model_version"] == answer["model_version"]
        each["hash"] = house.logged()[answer["prediction_id"]]["image_hash"]
    assert len(waiting(log)) == 2
    to = ("upload", "--log", log, "--to", house.served.url)
    done = fedloop(*to)
    assert (done.exit_code, done.stdout) == (0, "0 rows are logged, 1 kB wait\n2 rows are logged, 0 kB wait\n")
    assert (fedloop(*to).exit_code, fedloop(*to).stdout) == (0, "nothing to upload\n")
    for each in said:
        there = house.logged()[each["prediction_id"]]
        assert (there["site"], there["model_version"], there["image_hash"]) == ("ward", 2, each["hash"])
        assert there["probabilities"] == each["probabilities"]


def test_it_needs_no_network_and_none_of_the_heavy_libraries(house: EdgeHouse, scans: Path, tmp_path: Path) -> None:
    words = ["--graph", graph_of(house), "--site", "ward", "--log", tmp_path / "log", "--int8"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "edge", "predict", scans / "a.png", *words],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{scans / 'a.png'}: ") and done.stdout.endswith("%)\n")
    assert fedloop("upload", "--log", tmp_path / "log", "--to", house.served.url).exit_code == 0  # in int8, too


def test_killed_while_it_predicts_all_that_it_said_is_in_the_local_log(house: EdgeHouse, tmp_path: Path) -> None:
    folder, log = tmp_path / "many", tmp_path / "log"
    folder.mkdir()
    for number in range(1500):
        (folder / f"{number:04d}.png").write_bytes(encode_png(picture(number)))
    words = ["predict", folder, "--graph", graph_of(house), "--site", "ward", "--log", log, "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "edge", *map(str, words)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as running:  # fmt: skip
        assert running.stdout is not None
        said = [running.stdout.readline() for _ in range(40)]
        running.kill()
        said += running.stdout.readlines()
    whole = [json.loads(line)["prediction_id"] for line in said if line.endswith("}\n")]
    kept = {prediction_id(row["site"], row["request_id"]) for row in waiting(log)}
    assert 40 <= len(whole) < 1500
    assert set(whole) <= kept


def damage(about: dict[str, Any], graph: bytes) -> dict[str, tuple[object, bytes]]:
    return {
        "another graph": (about, graph + b"\0"),
        "a torn graph": (about, graph[:-100]),
        "other classes": (about | {"classes": about["classes"][::-1]}, graph),
        "another version": (about | {"version": 1}, graph),
        "an older release": ({name: value for name, value in about.items() if name != "sha256"}, graph),
        "no object": ([], graph),
    }


def test_a_graph_that_is_not_what_was_exported_is_refused_with_what_to_do(house: EdgeHouse, tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    shutil.copytree(graph_of(house), folder)
    about, graph = json.loads((folder / edge.ABOUT).read_text()), (folder / edge.GRAPH).read_bytes()
    (folder / edge.INT8).unlink()
    with pytest.raises(Missing, match=r"model.int8.onnx cannot be read .* --int8"):
        edge.open_graph(folder, int8=True)
    for name, (said, data) in damage(about, graph).items():
        (folder / edge.ABOUT).write_text(json.dumps(said))
        (folder / edge.GRAPH).write_bytes(data)
        with pytest.raises(BadInput, match="fedloop export") as error:
            edge.open_graph(folder)
        assert str(folder) in str(error.value), name
    (folder / edge.ABOUT).write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        edge.open_graph(folder)
    done = fedloop("predict", tmp_path / "x.png", "--graph", tmp_path / "no", "--site", "s", "--log", tmp_path / "log")
    assert done.exit_code == 2 and "model.json cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_be_logged_is_not_answered(house: EdgeHouse, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ("predict", scans / "a.png", "--graph", graph_of(house))
    done = fedloop(*words, "--site", "ward", "--log", tmp_path / "file")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be written" in done.stderr and "--log" in done.stderr
    done = fedloop(*words, "--site", "a site", "--log", tmp_path / "log")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "site may hold letters, digits" in done.stderr
    (tmp_path / "empty").mkdir()
    done = fedloop("predict", tmp_path / "empty", *words[2:], "--site", "ward", "--log", tmp_path / "log")
    assert done.exit_code == 2 and "there is no PNG or JPEG file in" in done.stderr
