"""Ingest: every row of a source is new, known, or in quarantine with its number and reason; nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sites import TINY, pictures, rows_of

from models.errors import BadInput, Missing
from models.images import encode_png
from models.quality import QUALITY_COLUMNS
from models.task import Rows
from pipelines.federated.store import SiteStore, stack_images
from pipelines.ingest import ingest

GOOD = pictures(np.arange(60) % 3, 7)
OTHER_SHAPE = np.zeros((5, 5, 1), dtype=np.uint8)
BAD: dict[str, tuple[Any, Any, str]] = {
    "wrong shape": (OTHER_SHAPE, 0, "the image has shape [5, 5, 1]; this task takes [8, 8, 1]"),
    "wrong size file": (encode_png(OTHER_SHAPE), 0, "the image is 5×5 pixels; this task takes 8×8 greyscale"),
    "NaN": (np.full((8, 8), np.nan), 0, "the image has NaN or infinite values"),
    "infinite": (np.full((8, 8), np.inf), 0, "the image has NaN or infinite values"),
    "out of range": (np.full((8, 8), 1.5), 0, "pixel values are in [1.5, 1.5]; they must be in [0, 1]"),
    "negative": (np.full((8, 8), -0.5), 0, "pixel values are in [-0.5, -0.5]; they must be in [0, 1]"),
    "integers": (np.full((8, 8), 300, dtype=np.int32), 0, "values of type int32"),
    "unreadable file": (b"no image", 0, "the bytes are not a readable image"),
    "empty file": (b"", 0, "the image is empty (0 bytes)"),
    "no image": (None, 0, "the image is a NoneType, not an array"),
    "unknown label": (GOOD[50], 3, "unknown label; known are 0 to 2 (label is 3)"),
    "negative label": (GOOD[51], -1, "unknown label; known are 0 to 2 (label is -1)"),
    "half a label": (GOOD[52], 0.5, "unknown label; known are 0 to 2 (label is 0.5)"),
    "a word for a label": (GOOD[53], "cat", "unknown label; known are 0 to 2 (label is 'cat')"),
    "a list for a label": (GOOD[54], [1], "unknown label; known are 0 to 2 (label is [1])"),
    "NaN for a label": (GOOD[55], float("nan"), "unknown label; known are 0 to 2 (label is nan)"),
    "duplicate": (GOOD[0], 0, "a duplicate of an earlier row"),
}


def source(*rows: tuple[Any, Any]) -> Rows:
    return Rows([image for image, _ in rows], [label for _, label in rows])


def files_in(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> SiteStore:
    return SiteStore(tmp_path / "site-1")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_goes_to_quarantine_with_number_and_reason_and_the_others_go_on(store: SiteStore, kind: str) -> None:
    image, label, reason = BAD[kind]
    done = ingest(store, TINY, source((GOOD[0], 0), (GOOD[1], 1), (image, label), (GOOD[2], None)), "train", "x")
    assert (done.new_rows, done.known_rows, done.quarantined) == (3, 0, 1)
    refused = store.quarantine()
    assert refused["row"].tolist() == [2]
    assert reason in refused["reason"].iloc[0]
    assert refused["source"].tolist() == ["x"]
    assert len(store.rows(done.snapshots, "train")) == 3


def test_all_kinds_at_once_are_all_told_apart(store: SiteStore) -> None:
    rows = [(GOOD[0], 0), *((image, label) for image, label, _ in BAD.values())]
    done = ingest(store, TINY, source(*rows), "train", "x")
    assert (done.new_rows, done.quarantined) == (1, len(BAD))
    refused = store.quarantine().set_index("row")["reason"]
    for number, (_, _, reason) in enumerate(BAD.values(), start=1):
        assert reason in refused[number]


bad_rows = st.sampled_from(list(BAD.values())).map(lambda bad: (bad[0], bad[1]))
good_rows = st.integers(0, 40).map(lambda i: (GOOD[i], i % 3))
unlabelled = st.integers(0, 40).map(lambda i: (encode_png(GOOD[i]), None))


@given(
    first=st.lists(good_rows | unlabelled, max_size=6),
    rows=st.lists(bad_rows | good_rows | unlabelled, min_size=1, max_size=15),
)
@settings(max_examples=12, deadline=None)
def test_no_row_is_lost_and_none_is_made(first: list[tuple[Any, Any]], rows: list[tuple[Any, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = SiteStore(Path(folder) / "site-1")
        parents = ingest(store, TINY, source(*first), "train", "first").snapshots if first else ()
        before = len(store.rows(parents, "train"))
        try:
            done = ingest(store, TINY, source(*rows), "train", "second", parents)
        except BadInput as error:
            assert f"all {len(rows)} rows of 'second' are bad" in str(error)
            assert (store.quarantine()["source"] == "second").sum() == len(rows)
            return
        refused = store.quarantine()
        refused = refused[refused["source"] == "second"]
        assert done.new_rows + done.known_rows + done.quarantined == len(rows)
        assert len(refused) == done.quarantined == refused["row"].nunique()
        assert refused["row"].between(0, len(rows) - 1).all()
        kept = store.rows(done.snapshots, "train")
        assert len(kept) == before + done.new_rows
        assert kept["row_id"].is_unique
        wanted = {
            encode_png(i) if isinstance(i, np.ndarray) else i
            for n, (i, _) in enumerate(rows)
            if n not in set(refused["row"])
        }
        assert wanted <= set(kept["png"])


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "evaluation"]))
@settings(max_examples=5, deadline=None)
def test_a_snapshots_id_is_its_content_whatever_the_order_or_form_of_the_rows(seed: int, split: Any) -> None:
    rows = rows_of(12, 3)
    order = np.random.default_rng(seed).permutation(12)
    shuffled = rows.take(order)
    files = Rows([encode_png(image) for image in shuffled.images], shuffled.labels)
    floats = Rows([image.astype(float) / 255.0 for image in shuffled.images], shuffled.labels)
    names = []
    for each in (rows, shuffled, files, floats):
        with tempfile.TemporaryDirectory() as folder:
            store = SiteStore(Path(folder) / "site-1")
            names.append(ingest(store, TINY, each, split, "x").snapshots)
    assert len(set(names)) == 1


def test_other_rows_another_site_and_another_split_have_other_ids(tmp_path: Path) -> None:
    names = {
        ingest(SiteStore(tmp_path / "one" / site), TINY, rows_of(12, seed), split, "x").snapshots
        for site, seed, split in (("a", 1, "train"), ("a", 2, "train"), ("b", 1, "train"), ("a", 1, "evaluation"))
    }
    assert len(names) == 4


def test_the_same_source_again_creates_nothing(store: SiteStore) -> None:
    rows = source(*((GOOD[i], i % 3) for i in range(9)), (b"", 0), (GOOD[0], 0))
    first = ingest(store, TINY, rows, "train", "x")
    before = files_in(store.root)
    again = ingest(store, TINY, rows, "train", "x")
    after = files_in(store.root)
    assert again.reused
    assert not first.reused
    assert again.snapshots == first.snapshots
    assert before.keys() == after.keys()
    snapshots = [name for name in before if name.startswith("snapshots")]
    assert all(before[name] == after[name] for name in snapshots), "a snapshot was written again"
    assert len(store.quarantine()) == 2
    known = ingest(store, TINY, rows, "train", "x", first.snapshots)
    assert (known.new_rows, known.known_rows, known.reused, known.snapshots) == (0, 9, True, first.snapshots)


def test_a_second_source_keeps_only_what_is_new_and_names_its_parent(store: SiteStore) -> None:
    first = ingest(store, TINY, source(*((GOOD[i], i % 3) for i in range(6))), "train", "x")
    second = ingest(store, TINY, source(*((GOOD[i], i % 3) for i in range(4, 10))), "train", "y", first.snapshots)
    assert (second.new_rows, second.known_rows) == (4, 2)
    assert second.snapshots == (*first.snapshots, second.snapshots[1])
    manifest = store.manifest(second.snapshots[1])
    assert (manifest.parent, manifest.rows, manifest.source) == (first.snapshots[0], 4, "y")
    assert len(store.rows(second.snapshots, "train")) == 10


def test_a_manifest_says_what_the_file_holds(store: SiteStore) -> None:
    done = ingest(store, TINY, source((GOOD[0], 0), (GOOD[1], 1), (b"", 1)), "evaluation", "x")
    manifest = store.manifest(done.snapshots[0])
    rows = store.rows(done.snapshots, "evaluation")
    assert (manifest.task, manifest.site, manifest.split) == ("tiny", "site-1", "evaluation")
    assert (manifest.rows, manifest.quarantined, manifest.parent) == (2, 1, None)
    assert list(manifest.schema) == ["row_id", "png", *QUALITY_COLUMNS]
    assert sorted(stack_images(rows["png"], TINY.input)[:, 0, 0, 0]) == sorted(GOOD[:2, 0, 0, 0])
    assert not len(store.rows(done.snapshots, "train")), "a snapshot belongs to its split"


def test_labels_are_in_the_archive_and_not_in_the_snapshot(store: SiteStore) -> None:
    done = ingest(store, TINY, source((GOOD[0], 2), (GOOD[1], None)), "train", "x")
    rows = store.rows(done.snapshots, "train")
    assert "label" not in rows
    by_png = dict(zip(rows["png"], store.truth(rows["row_id"]), strict=True))
    assert by_png[encode_png(GOOD[0])] == 2
    assert store.truth(rows["row_id"]).isna().sum() == 1


def test_the_good_twin_of_a_refused_row_goes_on(store: SiteStore) -> None:
    done = ingest(store, TINY, source((GOOD[0], 99), (GOOD[0], 1)), "train", "x")
    assert (done.new_rows, done.quarantined) == (1, 1)
    assert store.quarantine()["row"].tolist() == [0]


def test_a_wholly_bad_source_stops_with_a_sentence_and_its_rows_are_in_quarantine(store: SiteStore) -> None:
    with pytest.raises(
        BadInput, match=r"site site-1: all 3 rows of 'x' are bad, nothing was ingested; the first: row 0: "
    ):
        ingest(store, TINY, source((b"", 0), (None, 1), (GOOD[0], 9)), "train", "x")
    assert store.manifests() == []
    assert store.quarantine()["row"].tolist() == [0, 1, 2]


def test_an_empty_source_is_a_sentence(store: SiteStore) -> None:
    with pytest.raises(BadInput, match="the source 'x' has no rows"):
        ingest(store, TINY, source(), "train", "x")


# -- files that break -------------------------------------------------------------------------------------------


def test_a_changed_or_lost_snapshot_is_noticed_and_ingesting_again_repairs_it(store: SiteStore) -> None:
    rows = rows_of(6, 1)
    done = ingest(store, TINY, rows, "train", "x")
    path = store.root / "snapshots" / f"{done.snapshots[0]}.parquet"
    whole = store.rows(done.snapshots, "train")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BadInput, match="was changed after it was written; restore it or ingest its source again"):
        store.rows(done.snapshots, "train")
    assert not ingest(store, TINY, rows, "train", "x").reused
    assert store.rows(done.snapshots, "train").equals(whole)
    path.unlink()
    with pytest.raises(Missing, match="is gone; restore it or ingest its source again"):
        store.rows(done.snapshots, "train")
    ingest(store, TINY, rows, "train", "x")
    assert store.rows(done.snapshots, "train").equals(whole)
    with pytest.raises(Missing, match="has no snapshot nowhere"):
        store.rows(("nowhere",), "train")


KILLED = """
import os, signal, sys
from pathlib import Path
from tiny_sites import TINY, rows_of
from pipelines.federated import store
from pipelines.ingest import ingest
store.write_atomically = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
ingest(store.SiteStore(Path(sys.argv[1])), TINY, rows_of(6, 1), "train", "x")
"""


def test_kill_between_the_files_of_a_snapshot_leaves_none_and_the_next_call_makes_it(store: SiteStore) -> None:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    killed = subprocess.run([sys.executable, "-c", KILLED, store.root], env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((store.root / "snapshots").glob("*.parquet")), "it was killed too early to show anything"
    assert store.manifests() == []
    done = ingest(store, TINY, rows_of(6, 1), "train", "x")
    assert not done.reused
    assert len(store.rows(done.snapshots, "train")) == 6
