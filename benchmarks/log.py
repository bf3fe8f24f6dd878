"""Does a window cost the same in a long log as in a short one? A monitor's look at 10^4 and at 10^6 predictions.

    python benchmarks/log.py [--quick]

Two logs with the same traffic, one a hundred times as long, in SQLite and (where it is installed) in PostgreSQL, take
turns: each look of the monitor reports their next 250 rows, with everything that belongs to it (statistics, alarm,
Evidently's report, late labels, a full dashboard). "read" is the next window's rows alone, "look" the whole. Beside it:
what a row takes on the disk, what planning retention by size and forgetting a window cost, and how fast the long log
becomes Parquet, in a process of its own, with the memory that this took (as Linux tells it). All rows are a block of
2,000 real ones repeated; a tenth have labels. --quick: 4,000 and 20,000 rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

# In this order: the tests' folders have the packages' names.
sys.path.extend(str(Path(__file__).parents[1] / part) for part in (".", "tests"))

from camera_traffic import START, CameraTraffic
from postgres import binaries, postgres

from monitoring import retention
from monitoring.dashboard import Dashboard
from monitoring.database import LABELS, PREDICTIONS, WINDOWS
from monitoring.export import export
from monitoring.traffic import TrafficLog
from pipelines import watch
from pipelines.settings import Settings, load_settings

RESULTS = Path(__file__).parent / "results" / "log.json"
WINDOW = 250
SIZES = {"short": 10_000, "long": 1_000_000}
REPEATS = 12
LATER = START + 1e9
BLOCK = 2000


def fill(settings: Settings, rows: int, unseen: int, traffic: CameraTraffic) -> TrafficLog:
    """A log of so many rows, all but the last `unseen` of which are reported, and a dashboard that shows it."""
    traffic.install(settings)
    log = TrafficLog.open(settings.database_url, settings.images)
    traffic.send(log, BLOCK)
    p, block = PREDICTIONS.c, PREDICTIONS.alias().c
    first, lite = log.first_seq(), log.engine.dialect.name == "sqlite"
    fresh = sa.func.hex(sa.func.randomblob(16)) if lite else sa.cast(sa.func.gen_random_uuid(), sa.String)
    same = [column.name for column in p if column.name not in ("seq", "prediction_id", "at", "logged_at")]
    for start in range(BLOCK, rows, BLOCK):
        made = {"prediction_id": fresh, "at": block.at + start, "logged_at": block.logged_at + start}
        values = made | {name: block[name] for name in same}
        again = sa.select(*values.values()).where(block.seq < first + BLOCK).order_by(block.seq)
        with log.engine.begin() as connection:
            connection.execute(sa.insert(PREDICTIONS).from_select(list(values), again))
    said = sa.select(p.prediction_id, sa.literal("clinic"), p.prediction, p.at + 60).where(p.seq % 10 == 0)
    with log.engine.begin() as connection:
        connection.execute(sa.insert(LABELS).from_select(["prediction_id", "source", "label", "at"], said))
    if log.engine.dialect.name == "postgresql":  # what autovacuum does within a minute
        with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    # A first look gives evidence and snapshots like those of every window before it.
    _report(log, [first + rows - unseen - WINDOW], {})
    (seen,) = watch.look(settings, 1, now=LATER)
    with log.engine.begin() as connection:
        connection.execute(sa.delete(WINDOWS))
    starts = list(range(first, first + rows - unseen, WINDOW))
    _report(log, starts, seen.evidence)
    board = Dashboard(settings.dashboard, settings.model_name)
    for scope in ("overall", "performance"):
        text = (board.snapshots / f"{board._name(seen.from_seq, scope)}.json").read_bytes()
        for seq in starts[-settings.drift.keep_reports :]:
            (board.snapshots / f"{board._name(seq, scope)}.json").write_bytes(text)
    return log


def _report(log: TrafficLog, starts: list[int], evidence: dict[str, Any]) -> None:
    rest = {"rows": WINDOW, "started_at": 0.0, "ended_at": 0.0, "model_version": 1, "odd": 0, "evidence": evidence}
    with log.engine.begin() as connection:
        connection.execute(sa.insert(WINDOWS), [{"from_seq": s, "to_seq": s + WINDOW} | rest for s in starts])


def measure(houses: dict[str, Settings], logs: dict[str, TrafficLog], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of reading and of the whole look, the logs taking turns; the first turn warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {"read": [], "look": []} for name in houses}
    for turn in range(repeats + 1):
        for name, settings in houses.items():
            began = time.perf_counter()
            rows = watch.next_window(logs[name], settings.drift, LATER)
            read = time.perf_counter() - began
            assert rows is not None and len(rows) == WINDOW
            began = time.perf_counter()
            (report,) = watch.look(settings, 1, now=LATER)
            look = time.perf_counter() - began
            assert "overall" in report.evidence["scopes"], report.sentence
            if turn:
                found[name]["read"].append(read)
                found[name]["look"].append(look)
    return {name: {kind: median(times) for kind, times in kinds.items()} for name, kinds in found.items()}


def upkeep(log: TrafficLog, rows: int, folder: Path) -> dict[str, float]:
    """What a row takes, and what keeping the long log within its limits and exporting it cost."""
    with log.engine.connect() as connection:
        if log.engine.dialect.name == "sqlite":
            pages = "SELECT (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)"
            size = connection.exec_driver_sql(pages).scalar_one()
        else:
            tables = "pg_total_relation_size('predictions') + pg_total_relation_size('labels')"
            size = connection.exec_driver_sql(f"SELECT {tables}").scalar_one()
    began = time.perf_counter()
    policy = retention.RetentionPolicy(keep_gb=rows * retention.ROW_BYTES / 2e9)
    found = retention.plan(log.engine, policy, retention.needed_from(log.engine, 5000, 50), now=LATER)
    planned = time.perf_counter() - began
    cpu = time.process_time()
    gone = retention.prune(log, found.windows[:20])
    forgetting = (time.process_time() - cpu) / gone.windows
    call = [sys.executable, __file__, "--export", log.engine.url.render_as_string(False), str(log.images), str(folder)]
    exported = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
    return {"row_bytes": size / rows, "plan_s": planned, "forget_window_cpu_s": forgetting} | exported


def export_alone(url: str, images: str, folder: str) -> None:
    log = TrafficLog.open(url, Path(images))
    log.between(log.first_seq(), log.first_seq() + 10).to_parquet(Path(folder).with_suffix(".warm"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what is used begins anew
    before, began = _peak_mb(), time.perf_counter()
    done = export(log, Path(folder))
    seconds = time.perf_counter() - began
    grown = _peak_mb() - before
    print(json.dumps({"export_rows_per_s": done.rows / seconds, "export_files": done.files, "export_memory_mb": grown}))


def _peak_mb() -> float:
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1024


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, dict[str, str]]]:
    """kind → name of the log → URL."""
    kinds = {"sqlite": {name: f"sqlite:///{folder / name}.db" for name in SIZES}}
    if binaries() is None:
        yield kinds
        return
    with postgres() as server:
        engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in SIZES:
                connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        engine.dispose()
        yield kinds | {"postgresql": {name: f"{server.url}&options=-csearch_path%3D{name}" for name in SIZES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.export:
        export_alone(*asked.export)
        return
    logging.getLogger("fedloop").setLevel(logging.ERROR)
    repeats = 4 if asked.quick else REPEATS
    sizes = {"short": 4_000, "long": 20_000} if asked.quick else SIZES
    traffic, found = CameraTraffic(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name, databases(Path(name)) as kinds:
        for kind, urls in kinds.items():
            houses = {each: load_settings(home=Path(name) / kind / each, log_url=url) for each, url in urls.items()}
            logs = {each: fill(houses[each], rows, (repeats + 1) * WINDOW, traffic) for each, rows in sizes.items()}
            seconds = measure(houses, logs, repeats)
            found[kind] = {
                f"{each}_{part}_s": round(value, 4) for each, parts in seconds.items() for part, value in parts.items()
            }
            for part in ("read", "look"):
                found[kind][f"ratio_{part}"] = round(seconds["long"][part] / seconds["short"][part], 3)
            kept = upkeep(logs["long"], sizes["long"], Path(name) / f"{kind}-parquet")
            found[kind] |= {key: round(value, 4) for key, value in kept.items()}
            for log in logs.values():
                log.close()
    table = Table(title=f"a window of {WINDOW} rows in a log of {sizes['short']:,} and {sizes['long']:,} predictions")
    for column in ("figure", *found):
        table.add_column(column)
    for key in found["sqlite"]:
        table.add_row(key, *(str(found[kind][key]) for kind in found))
    Console().print(table)
    if not asked.quick:
        RESULTS.write_text(json.dumps({"rows": sizes, "repeats": repeats} | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
