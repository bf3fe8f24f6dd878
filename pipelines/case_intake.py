"""Customers' cases as they arrive: one picture with its answer, or a file of many that is taken line by line.

In go bytes and words as somebody wrote them; out come cases in the log database, and for every line that is none the
reason. A file is a folder, a ZIP, or a CSV beside its pictures: `manifest.csv` with the columns file, expected and, if
wanted, site, by, note; or, without one, a folder for each class.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, ValidationError

from models.errors import BadInput, Missing
from models.images import content_hash, encode_png
from models.task import Task
from monitoring import cases as book
from monitoring.cases import Case, Submission, Taken, UnknownCase
from monitoring.traffic import TrafficLog
from pipelines.serving_wire import Name, Pixels, Refusal, Strict, class_index, image_from_file, sentence

MAX_LINES = 1000
MAX_UNPACKED_BYTES = 64 * 2**20
"""Of a ZIP: a small one can unpack to gigabytes."""
MANIFEST = "manifest.csv"
COLUMNS = ("file", "expected", "site", "by", "note")

Person = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=64),
    Field(description="who submits it; 64 characters at most"),
]
Note = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$", max_length=400),
    Field(description="400 characters at most"),
]

ClassName = Annotated[str, Field(max_length=200, description="a class, by name or index", examples=["7"])]


class _Words(Strict):
    site: Name | None = None
    by: Person = "customer"
    note: Note = ""


class CaseQuery(_Words):
    """What is said of a picture, all of it text. expected: a class by name or, if none is called so, by index."""

    expected: ClassName


class CaseBody(_Words):
    """A picture with what is said of it."""

    expected: ClassName | int
    pixels: Pixels


@dataclass(frozen=True)
class Line:
    """A line of a file: its number (of a manifest, else of the picture, from 1), its picture's name, what it says."""

    number: int
    file: str
    words: Mapping[str, Any]
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Intake:
    """Every line is in one of the two: taken, with what became of it, or refused, with the reason."""

    taken: list[tuple[Line, Taken]]
    refused: list[tuple[Line, str]]


def own_case(log: TrafficLog, case_id: str, site: str | None) -> Case:
    """The case whose id is or begins so, for who speaks for that site; None: for all of them.

    Raises:
        UnknownCase: there is none, or it is another site's: nobody learns which.
        BadInput: there are several.
    """
    found = book.find(log.engine, case_id)
    if site not in (None, found.site):
        raise UnknownCase(f"there is no case {case_id!r} of site {site!r}")
    return found


def of_site(log: TrafficLog, given: Submission, site: str | None) -> Submission:
    """The submission in the name of a site; None: as it is.

    Raises:
        BadInput: it names another site, or the picture is another site's case.
    """
    if site is None:
        return given
    if given.site not in (None, site):
        raise BadInput(f"this token speaks for site {site!r}, not for {given.site!r}")
    if (before := book.history(log.engine, content_hash(given.png))) and before[-1].site != site:
        raise BadInput(f"this picture is somebody else's case already; site {site!r} cannot correct it")
    return replace(given, site=site)


def take_file(task: Task, log: TrafficLog, lines: Sequence[Line], site: str | None = None) -> Intake:
    """Take the good lines and say of each other one why it is none. The same file again changes nothing.

    site: whoever sends it speaks for this site alone.
    """
    good: list[tuple[Line, Submission]] = []
    refused: list[tuple[Line, str]] = []
    first: dict[bytes, tuple[Line, Submission]] = {}
    for line in lines:
        try:
            words = CaseQuery.model_validate_strings(line.words)
            given = of_site(log, submission(task, image_from_file(None, line.read(), task.input), words), site)
            before, its = first.setdefault(given.png, (line, given))
            if its.expected != given.expected:
                raise BadInput(
                    f"line {before.number} expects {its.expected!r} of the same picture; correct one of them"
                )
            good.append((line, given))
        except ValidationError as error:
            refused.append((line, sentence(error.errors())))
        except (Refusal, BadInput, Missing) as error:
            refused.append((line, str(error)))
    taken = book.submit(log, [each for _, each in good])
    return Intake([(line, each) for (line, _), each in zip(good, taken, strict=True)], refused)


def submission(task: Task, image: NDArray[np.uint8], words: CaseQuery | CaseBody) -> Submission:
    """A case to be taken; image: uint8 [height, width, channels].

    Raises:
        Refusal: the task has no such class.
    """
    said = words.expected
    if isinstance(said, str) and said not in task.classes and said.isascii() and said.isdigit():
        said = int(said)
    expected = task.classes[class_index(said, task.classes, None)]
    return Submission(encode_png(image), expected, words.site, words.by, words.note)


# -- files of many ----------------------------------------------------------------------------------------------


def lines_of_zip(data: bytes) -> list[Line]:
    """The lines of a ZIP, also of one that holds a packed folder.

    Raises:
        BadInput: it is none, it is too large, or its manifest cannot be read.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise BadInput(f"the file is no readable ZIP ({error})") from error
    inside = [info for info in archive.infolist() if info.filename and not info.is_dir()]
    if sum(info.file_size for info in inside) > MAX_UNPACKED_BYTES:
        raise BadInput(f"the ZIP unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MB; send several")
    paths = {PurePosixPath(info.filename.replace("\\", "/")): info for info in inside}
    shown = {path: info for path, info in paths.items() if not any(map(_hidden, path.parts))}
    tops = {path.parts[0] for path in shown if len(path.parts) > 1}
    packed = len(tops) == 1 and not any(len(path.parts) == 1 for path in shown)
    if packed and any(len(path.parts) == 3 or path.name == MANIFEST for path in shown):
        shown = {PurePosixPath(*path.parts[1:]): info for path, info in shown.items()}

    def read(path: PurePosixPath) -> bytes:
        if path not in shown:
            raise BadInput(f"there is no file {str(path)!r} in the ZIP")
        try:
            return archive.read(shown[path])
        except Exception as error:  # a damaged entry raises whatever its decompressor does
            raise BadInput(f"{str(path)!r} cannot be unpacked ({type(error).__name__}: {error})") from error

    manifest = PurePosixPath(MANIFEST)
    return _lines_of_manifest(read(manifest), read) if manifest in shown else _lines_of_folders(shown, read)


def lines_of(path: Path) -> list[Line]:
    """The lines of a folder, a CSV or a ZIP on disk.

    Raises:
        Missing: there is nothing at that path.
        BadInput: no lines are in it, too many are, or the manifest cannot be read.
    """
    if not path.exists():
        raise Missing(f"there is nothing at {path}")
    if path.is_file() and path.suffix.lower() == ".zip":
        return lines_of_zip(path.read_bytes())
    folder, manifest = (path, path / MANIFEST) if path.is_dir() else (path.parent, path)

    def read(name: PurePosixPath) -> bytes:
        return reader(folder / name)()

    if manifest.is_file():
        return _lines_of_manifest(manifest.read_bytes(), read)
    files = (PurePosixPath(each.relative_to(folder).as_posix()) for each in folder.glob("*/*") if each.is_file())
    return _lines_of_folders([each for each in files if not any(map(_hidden, each.parts))], read)


def reader(file: Path) -> Callable[[], bytes]:
    """Reads a picture when its line is taken, so that a missing one costs its line only."""

    def read() -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise BadInput(f"{file} cannot be read ({error.strerror})") from error

    return read


def _lines_of_folders(paths: Iterable[PurePosixPath], read: Callable[[PurePosixPath], bytes]) -> list[Line]:
    pictures = sorted(path for path in paths if len(path.parts) == 2)
    return _bounded(
        [
            Line(number, str(path), {"expected": path.parts[0]}, partial(read, path))
            for number, path in enumerate(pictures, 1)
        ]
    )


def _lines_of_manifest(data: bytes, read: Callable[[PurePosixPath], bytes]) -> list[Line]:
    try:
        text = data.decode("utf-8-sig")
        # Spreadsheets of half the world write semicolons.
        delimiter = ";" if ";" in text.partition("\n")[0] else ","
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip().lower() for name in rows.fieldnames or ()]
        if missing := [name for name in COLUMNS[:2] if name not in names]:
            raise BadInput(f"the CSV has no column {missing[0]!r}; its first line is to name {', '.join(COLUMNS)}")
        if wrong := [name for name in names if name not in COLUMNS or names.count(name) > 1]:
            raise BadInput(f"the CSV's column {wrong[0]!r} is unknown or there twice; known are {', '.join(COLUMNS)}")
        rows.fieldnames = names
        return _bounded([_line(rows.line_num, row, read) for row in rows])
    except UnicodeDecodeError as error:
        raise BadInput("the CSV is no UTF-8 text; save it as CSV UTF-8") from error
    except csv.Error as error:
        raise BadInput(f"the file is no readable CSV ({error})") from error


def _line(number: int, row: Mapping[Any, Any], read: Callable[[PurePosixPath], bytes]) -> Line:
    words = {name: row[name].strip() for name in COLUMNS[1:] if row.get(name) and row[name].strip()}
    file = (row["file"] or "").strip()
    path = PurePosixPath(file.replace("\\", "/"))

    def picture() -> bytes:
        if None in row:  # where csv puts what is beyond the last column
            raise BadInput("the line has more cells than the first one")
        if not file or path.is_absolute() or ".." in path.parts:
            raise BadInput(f"{file!r} is no file beside the CSV")
        return read(path)

    return Line(number, file, words, picture)


def _bounded(lines: list[Line]) -> list[Line]:
    if not lines:
        raise BadInput(f"there is no case in it: it takes a {MANIFEST} with lines, or a folder of pictures a class")
    if len(lines) > MAX_LINES:
        raise BadInput(f"there are {len(lines)} cases, and a file may have {MAX_LINES}; send several")
    return lines


def _hidden(name: str) -> bool:
    """What systems add to a folder by themselves."""
    return name.startswith((".", "__MACOSX"))
