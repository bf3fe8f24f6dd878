"""Files of many cases: every line is a case or a refusal with its reason, and nothing is in both."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fresh_logs import fresh_log
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.digits import TASK
from models.errors import BadInput, Missing
from models.images import content_hash, encode_png
from monitoring.cases import live
from pipelines import case_intake
from pipelines.case_intake import COLUMNS, Intake, lines_of, lines_of_zip, take_file


def picture(number: int, height: int = 8) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, size=(height, 8, 1), dtype=np.uint8))


PICTURES = {
    "a.png": picture(1),
    "deep/b.png": picture(2),
    "c.png": picture(3),
    "tall.png": picture(4, 9),
    "text.png": b"no picture",
    "empty.png": b"",
}
GOOD = {"a.png", "deep/b.png", "c.png", "deep\\b.png"}


def manifest_of(lines: list[list[str]], delimiter: str = ",") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([COLUMNS, *lines])
    return buffer.getvalue().encode()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def summary(done: Intake) -> tuple[list[object], list[object]]:
    return (
        [(line.number, line.file, each.case.case_id, each.case.expected) for line, each in done.taken],
        [(line.number, line.file) for line, _ in done.refused],
    )


line = st.tuples(
    st.sampled_from([*PICTURES, "deep\\b.png", "gone.png", "../a.png", "/etc/passwd", ""]),
    st.sampled_from(["7", "0", "10", "cat", "-1", "٣", ""]),
    st.sampled_from(["", "clinic-1", "a b"]),
    st.sampled_from(["", "Dr. Ruiz", "x" * 65, "a\x07b"]),
    st.sampled_from(["", "seen twice", "y" * 401]),
    st.sampled_from([0, 0, 0, 1]),
)


@given(lines=st.lists(line, min_size=1, max_size=12), delimiter=st.sampled_from([",", ";"]))
@settings(max_examples=40, deadline=None)
@example(lines=[("a.png", "7", "", "", "", 0), ("a.png", "0", "", "", "", 0)], delimiter=",")
def test_every_line_is_a_case_or_a_refusal_and_again_it_is_the_same(
    lines: list[tuple[str, str, str, str, str, int]], delimiter: str
) -> None:
    cells = [[*each[:5], *["more"] * each[5]] for each in lines]
    data = zip_of(PICTURES | {"manifest.csv": manifest_of(cells, delimiter)})
    with fresh_log() as log:
        read = lines_of_zip(data)
        assert [each.number for each in read] == list(range(2, len(lines) + 2))
        done = take_file(TASK, log, read)
        taken, refused = {each.number for each, _ in done.taken}, {each.number for each, _ in done.refused}
        assert taken | refused == set(range(2, len(lines) + 2))
        assert not taken & refused
        assert all(why for _, why in done.refused)
        said: dict[bytes, str] = {}  # picture → what its first good line expects
        for number, (file, expected, site, by, note, more) in enumerate(lines, 2):
            fits = file in GOOD and expected in ("7", "0") and site != "a b" and len(note) < 401
            fits = fits and by in ("", "Dr. Ruiz") and not more
            fits = fits and said.setdefault(PICTURES[file.replace("\\", "/")], expected) == expected
            assert (number in taken) == fits
        for each, what in done.taken:
            assert what.case.case_id == content_hash(PICTURES[each.file.replace("\\", "/")])
        once = live(log.engine)
        assert {case.case_id: case.expected for case in once} == {content_hash(png): said[png] for png in said}
        again = take_file(TASK, log, read)
        assert summary(again) == summary(done)
        assert {what.status for _, what in again.taken} <= {"already"}
        assert live(log.engine) == once


@given(junk=st.one_of(st.binary(max_size=60), st.integers(0, 400)))
@settings(max_examples=60, deadline=None)
def test_a_broken_zip_is_a_sentence_and_a_damaged_picture_costs_its_line(junk: bytes | int) -> None:
    whole = zip_of({"3/a.png": PICTURES["a.png"], "4/c.png": PICTURES["c.png"]})
    data = junk if isinstance(junk, bytes) else whole[:junk] + b"\xff\x00\xff" + whole[junk + 3 :]
    with fresh_log() as log:
        try:
            lines = lines_of_zip(data)
        except BadInput as error:
            assert str(error)
            return
        done = take_file(TASK, log, lines)
        assert len(done.taken) + len(done.refused) == len(lines) > 0


def test_a_folder_a_zip_and_a_packed_folder_say_the_same(tmp_path: Path) -> None:
    files = {"3/a.png": PICTURES["a.png"], "4/c.png": PICTURES["c.png"], "cat/d.png": picture(9), "3/x.png": b"no"}
    for name, data in (files | {".DS_Store": b"x", "3/.hidden": b"x"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = []
    packed = {f"cases/{name}": data for name, data in files.items()} | {"__MACOSX/3/a.png": b"x"}
    for lines in (lines_of(tmp_path), lines_of_zip(zip_of(files)), lines_of_zip(zip_of(packed))):
        with fresh_log() as log:
            found.append(summary(take_file(TASK, log, lines)))
    assert found[0] == found[1] == found[2]
    assert [entry[3] for entry in found[0][0]] == ["3", "4"]  # type: ignore[index]
    assert found[0][1] == [(2, "3/x.png"), (4, "cat/d.png")]


def test_a_csv_names_pictures_beside_it_and_a_spreadsheets_marks_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES["a.png"])
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf File ;Expected\r\na.png; 7 \r\n\r\ngone.png;3\r\n")
    with fresh_log() as log:
        done = take_file(TASK, log, lines_of(tmp_path / "list.csv"))
    assert [(each.number, what.case.expected) for each, what in done.taken] == [(2, "7")]
    assert [(each.number, each.file) for each, _ in done.refused] == [(4, "gone.png")]
    assert "cannot be read (No such file" in done.refused[0][1]


@pytest.mark.parametrize(
    ("manifest", "fragment"),
    [
        (b"file\na.png\n", "no column 'expected'"),
        (b"file,expected,colour\na.png,7,red\n", "column 'colour' is unknown"),
        (b"file,expected,expected\na.png,7,8\n", "'expected' is unknown or there twice"),
        (b"file,expected\n", "there is no case in it"),
        (b"", "no column 'file'"),
        ("file,expected\nä.png,7\n".encode("latin-1"), "no UTF-8"),
        (b'file,expected\n"a.png,7\n', "no readable CSV"),
        (b"file,expected\n" + b"a.png,7\n" * 1001, "1001 cases, and a file may have 1000"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_as_a_whole(manifest: bytes, fragment: str) -> None:
    with pytest.raises(BadInput, match=fragment):
        lines_of_zip(zip_of(PICTURES | {"manifest.csv": manifest}))


def test_a_file_without_cases_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no readable ZIP"):
        lines_of_zip(b"file,expected\n")
    with pytest.raises(BadInput, match="there is no case in it"):
        lines_of_zip(zip_of({"a.png": PICTURES["a.png"]}))
    with pytest.raises(Missing, match="nothing at"):
        lines_of(tmp_path / "nowhere")
    monkeypatch.setattr(case_intake, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(BadInput, match="unpacks to more than"):
        lines_of_zip(zip_of({"3/a.png": bytes(1001)}))
