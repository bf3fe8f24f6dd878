"""Data files that are not part of fedloop: found in a folder, or downloaded once and verified.

In goes a file's name, out comes a path whose content has the right checksum, or its arrays. `FEDLOOP_DATA` names a
folder that holds the files already; without it they are downloaded into the user's cache. The images are MedMNIST's:
Yang et al., "MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image classification",
Scientific Data 2023, CC BY 4.0. They are for research and not for clinical use.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput, Missing
from models.task import Rows, TaskData

CONNECT_S, READ_S = 4.0, 15.0
"""How long a download waits for an address to answer, and for the next bytes: being offline is said soon."""


@dataclass(frozen=True)
class DataFile:
    """Where a file comes from, and what it must be.

    url: its address, or its mere name where nobody publishes this very file; folder: that it may lie in.
    """

    url: str
    sha256: str
    size_mb: float
    folder: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def dataset(self) -> str:
        """The data set's name, and of the folder that a file may lie in."""
        return self.folder or self.name.partition(".")[0]

    @property
    def published(self) -> bool:
        return "://" in self.url


RECORD = "https://zenodo.org/records/10519652/files"
"""MedMNIST's official record."""

FILES: Mapping[str, DataFile] = {
    file.name: file
    for file in (
        DataFile(
            f"{RECORD}/retinamnist.npz", "254915f5f0a2074665c4676356824cf4ef4a3bcab233894b4bafcaf48962bd69", size_mb=3.3
        ),
        DataFile(
            f"{RECORD}/pneumoniamnist.npz",
            "e1792d3f03751cb101e99f19a63b3c1941436c988665f47853417b05be250cd8",
            size_mb=4.2,
        ),
    )
}


def data_file(name: str, files: Mapping[str, DataFile] = FILES) -> Path:
    """The path of a data file whose content has been verified.

    Raises:
        BadInput: no such file is known, or what lies there is another file than it should be.
        Missing: it is neither in the folder that FEDLOOP_DATA names nor downloadable; says both ways to get it.
    """
    if name not in files:
        raise BadInput(f"there is no data file {name!r}; known are {', '.join(files)}")
    file = files[name]
    folder = os.environ.get("FEDLOOP_DATA", "").strip()
    if not folder and file.published:
        return _download(file)
    if not folder:
        raise Missing(
            f"{file.name} is not here, and nobody publishes this very file, so it cannot be downloaded. Name the "
            "folder that holds it: FEDLOOP_DATA=<folder>"
        )
    root = Path(folder).expanduser()
    for path in (root / file.name, root / file.dataset / file.name):
        if path.is_file():
            return _verified(path, file)
    remedy = f" (from {file.url}), or unset FEDLOOP_DATA and it is downloaded ({file.size_mb:.0f} MB)"
    raise Missing(
        f"FEDLOOP_DATA is {folder}, but {file.name} is neither there nor in its folder {file.dataset}/. Put the file "
        f"there{remedy if file.published else ''}"
    )


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name; a file that holds Python objects is refused.

    Raises:
        BadInput: the file cannot be read as plain arrays.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it holds a single array without a name")
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path} is no readable .npz file of plain arrays ({error or 'it is empty'})") from error


def medmnist_pools(
    arrays: Mapping[str, NDArray[Any]], positive_from: int, development: int, live: int, evaluation: int, seed: int
) -> TaskData:
    """A MedMNIST file in four pools that share no image, as a question with two answers.

    Its own splits stay apart: development and live come from the training images, evaluation from the validation
    images, and the probe is the whole test set. positive_from: the lowest class that counts as positive. An image
    that occurs twice is taken once.

    Raises:
        BadInput: the arrays are not MedMNIST's, or there are too few of them.
    """
    rng, seen = np.random.default_rng(seed), set[bytes]()
    splits = {}
    for split in ("test", "val", "train"):  # of duplicates the test set keeps its own
        try:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
        except KeyError as error:
            raise BadInput(
                f"the data have no array {error}; a MedMNIST file has {split}_images, {split}_labels"
            ) from error
        images = images[..., None] if images.ndim == 3 else images
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        new = [i for i, key in enumerate(keys) if not (key in seen or seen.add(key))]  # type: ignore[func-returns-value]
        order = rng.permutation(new)
        splits[split] = Rows([images[i] for i in order], [int(labels[i] >= positive_from) for i in order])
    if len(splits["train"]) < development + live or len(splits["val"]) < evaluation:
        raise BadInput(f"there are only {len(splits['train'])} training and {len(splits['val'])} validation images")
    return TaskData(
        development=splits["train"].take(np.arange(development)),
        evaluation=splits["val"].take(np.arange(evaluation)),
        live=splits["train"].take(np.arange(development, development + live)),
        probe=splits["test"],
    )


def _download(file: DataFile) -> Path:
    """The file in the user's cache, downloaded where it is not there yet or has been altered."""
    import pooch

    cache = Path(pooch.os_cache("fedloop"))
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(CONNECT_S, READ_S))
    try:
        path = pooch.retrieve(file.url, f"sha256:{file.sha256}", file.name, cache, downloader=downloader)
    except OSError as error:  # those of requests are OSErrors, some of them ValueErrors as well
        raise Missing(
            f"{file.name} is not here and cannot be downloaded ({type(error).__name__}). Either connect to the "
            f"network and try again: {file.url} goes to {cache} ({file.size_mb:.0f} MB, once). Or get the file another "
            "way and name the folder that holds it: FEDLOOP_DATA=<folder>"
        ) from error
    except ValueError as error:
        raise BadInput(
            f"what {file.url} sends is not {file.name} (its SHA-256 is not {file.sha256}); a proxy may answer in its "
            "place. Get the file another way and name its folder in FEDLOOP_DATA"
        ) from error
    return Path(path)


def _verified(path: Path, file: DataFile) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != file.sha256:
        raise BadInput(
            f"{path} is not the file it should be (its SHA-256 is {found}, not {file.sha256}); "
            + (
                f"replace it by {file.url}, or unset FEDLOOP_DATA and it is downloaded"
                if file.published
                else "put the right file there"
            )
        )
    return path
