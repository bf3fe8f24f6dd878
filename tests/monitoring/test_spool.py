"""What was appended comes out once it is drained, in order, whatever happened to the end of the file."""

from __future__ import annotations

import itertools
import os
import resource
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring import spool as module
from monitoring.spool import Record, Spool


def drained(spool: Spool) -> list[int]:
    out: list[Record] = []
    spool.drain(out.extend)
    return [record["n"] for record in out]


def numbered(batches: list[int]) -> list[list[Record]]:
    count = itertools.count()
    return [[{"n": next(count)} for _ in range(size)] for size in batches]


@given(
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=12), torn=st.binary(max_size=40), cut=st.integers(0, 60)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_torn_end_takes_nothing_with_it_but_itself(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], torn: bytes, cut: int
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for batch in numbered(batches):
        spool.append(batch)
    (path,) = spool.segments()
    assert drained(Spool(spool.folder)) == []  # somebody writes it
    spool.seal()
    whole = path.read_bytes()
    kept = whole[: len(whole) - cut] + torn.replace(b"\n", b" ")
    path.write_bytes(kept)
    expected = kept[: kept.rfind(b"\n") + 1].count(b"\n")
    found = drained(spool)
    assert found[:expected] == list(range(expected))
    assert len(found) <= expected + 1  # a cut that took only the line's end
    assert spool.segments() == []


def test_a_batch_is_one_fsync_however_many_records_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
    spool = Spool(tmp_path)
    spool.append([{"n": 0}])  # the first makes the file, and its folder is made to know it
    del synced[:]
    for size in (1, 500):
        spool.append([{"n": n} for n in range(size)])
    assert len(synced) == 2


def test_a_line_that_rots_in_the_middle_is_left_out_and_its_file_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([{"n": n} for n in range(5)])
    (path,) = spool.segments()
    spool.seal()
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":7'))
    assert drained(spool) == [0, 1, 3, 4]
    assert [each.suffix for each in tmp_path.iterdir()] == [".damaged"]


def test_segments_are_bounded_and_drained_oldest_first_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 100)
    spool = Spool(tmp_path)
    for batch in numbered([2] * 40):
        spool.append(batch)
    for path in spool.segments():
        os.utime(path, (1e9 - int(path.name[:12]), 1e9 - int(path.name[:12])))  # the clock ran backwards
    spool.seal()
    assert len(spool.segments()) > 5
    assert spool.size_bytes() == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert drained(spool) == list(range(80))


def test_what_is_refused_is_offered_again_from_the_segments_beginning(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([{"n": n} for n in range(module.BATCH + 10)])
    spool.seal()
    offered: list[int] = []

    def refuse_the_second(batch: list[Record]) -> None:
        if offered:
            raise OSError("away")
        offered.extend(record["n"] for record in batch)

    with pytest.raises(OSError, match="away"):
        spool.drain(refuse_the_second)
    assert offered == list(range(module.BATCH))
    assert drained(spool) == list(range(module.BATCH + 10))


def test_a_full_disk_takes_a_batch_whole_or_not_at_all(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([{"n": 0}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # Python ignores the signal: write says EFBIG
    try:
        with pytest.raises(OSError):
            spool.append([{"n": n} for n in range(1, 9)])
        with pytest.raises(OSError):
            spool.append([{"n": n, "more": "x" * 100} for n in range(10, 12)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    spool.append([{"n": 20}])
    spool.seal()
    assert drained(spool) == [0, 20]


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12), dies_at=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_small_segments_share_a_batch_and_stay_until_all_of_them_is_taken(sizes: list[int], dies_at: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", 5)
        spool = Spool(Path(folder))
        for batch in numbered(sizes):
            spool.append(batch)
            spool.seal()
        taken: list[int] = []
        batches: list[int] = []

        def take(records: list[Record]) -> None:
            if len(batches) == dies_at:
                raise OSError("away")
            batches.append(len(records))
            taken.extend(record["n"] for record in records)

        whole = dies_at >= -(-sum(sizes) // 5)
        with nullcontext() if whole else pytest.raises(OSError, match="away"):
            spool.drain(take)
        assert batches == [5] * len(batches) or (whole and batches[:-1] == [5] * (len(batches) - 1))
        rest = drained(Spool(spool.folder))
        assert taken == list(range(len(taken)))
        assert rest == list(range(sum(sizes) - len(rest), sum(sizes)))  # the last ones
        assert len(taken) + len(rest) < sum(sizes) + max(sizes)  # at most one segment is offered again
        assert len(taken) + len(rest) >= sum(sizes)  # nothing is lost
        assert spool.segments() == []
