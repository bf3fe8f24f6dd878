"""The image store beside the log: PNG files in a folder, each named by its content.

A picture is written whole or not at all, and before the row that speaks of it. Naming it again makes it young again,
so that `remove_unless_young` never takes one away from a row that is just about to be written.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from pathlib import Path

from models.errors import BadInput, Missing

YOUNG_S = 3600.0
"""A row is in the log, or refused, long before its picture is this old."""

_HASH = re.compile(r"[0-9a-f]{32}")


def path_of(folder: Path, image_hash: str) -> Path:
    """Where the picture of that name lies.

    Raises:
        BadInput: it is no name of a picture.
    """
    if not _HASH.fullmatch(image_hash):
        raise BadInput(f"{image_hash!r} is no image name: 32 hexadecimal digits are")
    return folder / image_hash[:2] / f"{image_hash}.png"


def read(folder: Path, image_hash: str) -> bytes:
    """The PNG of that name.

    Raises:
        Missing: the image store does not hold it.
    """
    path = path_of(folder, image_hash)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Missing(f"the image {image_hash} is not in the image store (looked at {path})") from error


def keep(folder: Path, image_hash: str, png: bytes) -> None:
    """Put a PNG into the store under its content's name; one that is there becomes young."""
    # Hot: a system call that is not made here, and a Path that is not built, is most of what a row costs.
    path = str(path_of(folder, image_hash))
    try:
        os.utime(path)
        return
    except FileNotFoundError:
        pass
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            if file.write(png) != len(png):  # a disk that fills up takes a part of it, without an error
                raise OSError(f"the picture {image_hash} could not be written whole")
        os.rename(part, path)  # noqa: PTH104
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def remove_unless_young(folder: Path, image_hash: str) -> int:
    """Take a picture away that no row needs; the bytes that this frees, 0 where somebody has just named it again."""
    path = path_of(folder, image_hash)
    aside = path.with_suffix(".gone")
    try:
        if time.time() - path.stat().st_mtime < YOUNG_S:
            return 0
        path.rename(aside)
        # Whoever named it before the rename made it young, and whoever comes after writes it anew.
        found = aside.stat()
        if time.time() - found.st_mtime < YOUNG_S:
            aside.rename(path)
            return 0
        aside.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size
