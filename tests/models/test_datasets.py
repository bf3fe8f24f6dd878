"""A data file is the right one or a sentence, wherever it comes from. The downloads go to a real HTTP server here."""

from __future__ import annotations

import functools
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.datasets import FILES, DataFile, data_file, medmnist_pools, read_arrays
from models.errors import BadInput, Missing

CONTENT = b"not really arrays, but always these bytes"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """Serves `<tmp>/server`, and counts what it was asked."""
    folder = tmp_path / "server"
    folder.mkdir()
    made = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    made.asked = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("FEDLOOP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def files(port: int, content: bytes = CONTENT) -> dict[str, DataFile]:
    url = f"http://127.0.0.1:{port}/toymnist.npz"
    return {"toymnist.npz": DataFile(url, hashlib.sha256(content).hexdigest(), size_mb=1.0)}


@pytest.mark.parametrize("place", ["toymnist.npz", "toymnist/toymnist.npz"])
def test_a_file_is_found_in_the_folder_or_in_its_data_sets_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    monkeypatch.setenv("FEDLOOP_DATA", str(tmp_path / "data"))
    assert data_file("toymnist.npz", files(9)) == path


def test_a_file_with_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toymnist.npz").write_bytes(CONTENT + b"!")
    monkeypatch.setenv("FEDLOOP_DATA", str(tmp_path))
    with pytest.raises(BadInput, match=r"toymnist\.npz is not the file it should be .* replace it"):
        data_file("toymnist.npz", files(9))


def test_a_named_folder_without_the_file_is_said_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ThreadingHTTPServer
) -> None:
    (tmp_path / "server" / "toymnist.npz").write_bytes(CONTENT)
    monkeypatch.setenv("FEDLOOP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Missing, match=r"Put the file there .* or unset FEDLOOP_DATA"):
        data_file("toymnist.npz", files(server.server_port))
    assert server.asked == 0  # type: ignore[attr-defined]


def test_a_file_is_downloaded_once(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    (tmp_path / "server" / "toymnist.npz").write_bytes(CONTENT)
    known = files(server.server_port)
    path = data_file("toymnist.npz", known)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")
    assert data_file("toymnist.npz", known) == path
    assert server.asked == 1  # type: ignore[attr-defined]


def test_a_damaged_copy_in_the_cache_is_replaced(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    (tmp_path / "server" / "toymnist.npz").write_bytes(CONTENT)
    known = files(server.server_port)
    data_file("toymnist.npz", known).write_bytes(CONTENT[:7])
    assert data_file("toymnist.npz", known).read_bytes() == CONTENT


def test_a_download_of_something_else_is_refused_and_not_kept(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    (tmp_path / "server" / "toymnist.npz").write_bytes(b"<html>please log in to this network</html>")
    with pytest.raises(BadInput, match="a proxy may answer"):
        data_file("toymnist.npz", files(server.server_port))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_network_the_sentence_names_both_ways_and_comes_soon() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(Missing, match=r"connect to the network .* FEDLOOP_DATA=<folder>"):
        data_file("toymnist.npz", files(port))
    assert time.monotonic() - began < 20


def test_a_file_that_the_server_does_not_have_is_missing(server: ThreadingHTTPServer) -> None:
    with pytest.raises(Missing, match=r"cannot be downloaded \(HTTPError\)"):
        data_file("toymnist.npz", files(server.server_port))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"retinamnist\.npz, pneumoniamnist\.npz"):
        data_file("mnist.npz")


def test_every_known_file_comes_from_the_official_record_over_tls() -> None:
    for name, file in FILES.items():
        assert file.url == f"https://zenodo.org/records/10519652/files/{name}"
        assert len(bytes.fromhex(file.sha256)) == 32


def test_arrays_that_need_a_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, harmless=np.arange(3), evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadInput, match=r"no readable \.npz file of plain arrays"):
        read_arrays(path)


@given(junk=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_whatever_bytes_lie_there_reading_them_gives_arrays_or_a_sentence(
    junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = io.BytesIO()
    np.savez(whole, a=np.arange(4))
    path = tmp_path_factory.mktemp("junk") / "file.npz"
    path.write_bytes(whole.getvalue()[: len(junk)] + junk)
    with pytest.raises(BadInput):
        read_arrays(path)


def test_a_single_array_is_no_file_of_named_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(BadInput, match="a single array"):
        read_arrays(tmp_path / "one.npy")


def toy(train: int, val: int, test: int, values: int, seed: int) -> dict[str, np.ndarray]:
    """A file like MedMNIST's, of 2×2 images with few values: duplicates within and across its splits are common."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        arrays[f"{split}_images"] = rng.integers(0, values, size=(count, 2, 2), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 5, size=(count, 1), dtype=np.uint8)
    return arrays


@given(seed=st.integers(0, 10_000), values=st.integers(3, 8), test=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_no_image_is_in_two_pools_or_in_one_twice(seed: int, values: int, test: int) -> None:
    arrays = toy(120, 30, test, values, seed)
    try:
        data = medmnist_pools(arrays, 2, development=20, live=10, evaluation=5, seed=seed)
    except BadInput:
        return  # too many duplicates to fill the pools, which is said
    images = [image.tobytes() for rows in vars(data).values() for image in rows.images]
    assert len(set(images)) == len(images)
    assert (len(data.development), len(data.live), len(data.evaluation)) == (20, 10, 5)
    originals = {image.tobytes() for image in arrays["test_images"]}
    assert {image.tobytes() for image in data.probe.images} == originals  # type: ignore[union-attr]
    assert {image.shape for image in data.probe.images} == {(2, 2, 1)}  # type: ignore[union-attr]


def test_labels_from_the_threshold_on_are_positive() -> None:
    arrays = toy(200, 40, 40, 256, 0)
    images, labels = arrays["test_images"], arrays["test_labels"].reshape(-1)
    truth = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    probe = medmnist_pools(arrays, 2, development=50, live=20, evaluation=10, seed=0).probe
    assert len(probe) == 40
    for image, label in zip(probe.images, probe.labels, strict=True):
        assert label == int(truth[image.tobytes()] >= 2)  # type: ignore[union-attr]


def test_other_arrays_are_answered_with_what_a_file_should_hold() -> None:
    with pytest.raises(BadInput, match="no array 'test_images'"):
        medmnist_pools({"x": np.zeros(3)}, 1, development=1, live=1, evaluation=1, seed=0)
