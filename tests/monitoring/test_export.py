"""The log as Parquet: every row once, the same files by the same export, labels as they come, nothing forgotten."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
from fresh_logs import Databases, fresh_log
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_rows import NOW, prediction

from models.errors import BadInput
from monitoring.database import PREDICTIONS
from monitoring.export import export
from monitoring.traffic import TrafficLog

SITES = ("site-1", "007", "a.b")


def fill(log: TrafficLog, rows: int) -> list[str]:
    made = [prediction(number, NOW + 7000 * number, SITES[number % 3]) for number in range(rows)]
    random.Random(0).shuffle(made)  # event time is not the order of the log
    log.record(made)
    return [row.prediction_id for row in made]


def read(folder: Path) -> pd.DataFrame:
    keys = pa.dataset.partitioning(pa.schema([("site", pa.string()), ("date", pa.string())]), flavor="hive")
    table = pa.dataset.dataset(folder, format="parquet", partitioning=keys).to_table()
    return table.to_pandas().sort_values("seq").reset_index(drop=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_every_row_is_exported_once_with_its_label_under_its_site_and_day(databases: Databases, tmp_path: Path) -> None:
    with databases.log() as log:
        ids = fill(log, 60)
        log.label(ids[7], 3, "clinic", NOW)
        done = export(log, tmp_path, chunk=16)
        assert (done.rows, done.files) == (60, len(contents(tmp_path)))
        found, logged = read(tmp_path), log.between(0, 1000)
        for name in (name for name in logged.columns if name not in ("probabilities", "label")):
            assert found[name].tolist() == logged[name].tolist()
        assert [list(each) for each in found["probabilities"]] == logged["probabilities"].tolist()
        assert found[found["label"].notna()]["prediction_id"].tolist() == [ids[7]]
        assert found["date"].tolist() == [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}" for at in found["at"]]
        before = contents(tmp_path)
        export(log, tmp_path, chunk=16)
        assert contents(tmp_path) == before
        log.label(ids[8], 4, "clinic", NOW)  # what comes late changes one file
        log.record([prediction(99, NOW, "site-1")])
        export(log, tmp_path, chunk=16)
        changed = [name for name, data in contents(tmp_path).items() if before.get(name) != data]
        assert len(changed) == 2
        assert len(read(tmp_path)) == 61


@given(
    first=st.none() | st.integers(12, 17), last=st.none() | st.integers(12, 17), sites=st.sets(st.sampled_from(SITES))
)
@settings(max_examples=15, deadline=None)
def test_exports_of_parts_in_any_order_never_spoil_each_other(
    tmp_path_factory: pytest.TempPathFactory, first: int | None, last: int | None, sites: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    days = [day and date(1970, 1, day) for day in (first, last)]
    with fresh_log() as log:
        fill(log, 25)
        if first and last and last < first:
            with pytest.raises(BadInput, match="before the first"):
                export(log, folder, *days)
            return
        export(log, folder, *days, sorted(sites), chunk=16)
        frame = log.between(0, 1000)
        day = [datetime.fromtimestamp(at, UTC).day for at in frame["at"]]
        meant = [
            key for key, site, on in zip(frame["prediction_id"], frame["site"], day, strict=True)
            if (not sites or site in sites) and (first or 0) <= on <= (last or 99)
        ]  # fmt: skip
        assert (read(folder)["prediction_id"].tolist() if contents(folder) else []) == meant
        export(log, folder, chunk=16)
        whole = contents(folder)
        export(log, folder, *days, sorted(sites), chunk=16)
        assert contents(folder) == whole
        assert read(folder)["prediction_id"].tolist() == frame["prediction_id"].tolist()


def test_what_the_log_has_forgotten_since_stays_in_the_files(tmp_path: Path) -> None:
    with fresh_log() as log:
        fill(log, 40)
        export(log, tmp_path)
        whole = read(tmp_path)
        with log.engine.begin() as connection:
            connection.execute(PREDICTIONS.delete().where(PREDICTIONS.c.seq <= 25))
        export(log, tmp_path)
        pd.testing.assert_frame_equal(read(tmp_path), whole)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with fresh_log() as log:
        assert export(log, tmp_path / "file").rows == 0
        fill(log, 3)
        with pytest.raises(BadInput, match="cannot be written"):
            export(log, tmp_path / "file")
