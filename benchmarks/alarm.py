"""How often is the alarm false, and how soon does it come? Beside Evidently's drift share, ADWIN, KSWIN, Page-Hinkley.

    python benchmarks/alarm.py [--quick] [--streams digits,elec2,gas,retina] [--runs 3]

Windows of 100 rows of digits and retina (three sites), elec2 before its break and the shuffled first batch of gas;
FEDLOOP_DATA names the folder with the last three, and what is not there is left out and said so. Our level follows from
the stated rate; each peer's threshold is, for each stream, the lowest that gave at most one false alarm in 1,000 of
the stable windows that it was shown (half of ours; KSWIN, which is slow, 78: fewer are in their favour). One whose
threshold then fails in the stable beginning of a drift's run holds no such rate, and is left out there.
All alarm at once; what waiting for a second window costs (`alarm.persistence`, the default) is told
beside it. --quick takes two runs of each and changes nothing that is kept; --streams measures these and keeps the
others' figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from alarm_peers import PEERS, quick_kswin
from alarm_streams import STREAMS, Drift, Split
from rich.console import Console
from rich.table import Table

ROWS, BEFORE, AFTER, STABLE = 100, 10, 15, 26
"""Rows of a window; windows before a drift; windows it is given; windows of a stable run."""
PEER_RUNS, KSWIN_RUNS = 10, 3  # stable runs that set their thresholds: fewer are in their favour, and KSWIN is slow
RESULTS = Path(__file__).parent / "results"
Scores = dict[str, list[float]]
Method = Callable[[Split, Sequence[pd.DataFrame]], Scores]


def ours(split: Split, windows: Sequence[pd.DataFrame]) -> Scores:
    """The logarithm of the e-detector after each window, with and without waiting for a second one: the monitor's own
    statistics, over rows as they stand in WINDOWS.
    """
    from monitoring import drift
    from monitoring.calibration import Calibration
    from monitoring.detector import detect
    from monitoring.policy import AlarmPolicy

    policy = drift.DriftPolicy(window_rows=ROWS)

    def clean(frame: pd.DataFrame) -> pd.DataFrame:
        return drift.clean(frame.assign(prediction=frame["prediction"].astype(str)), split.numeric)

    reference = {site: clean(rows) for site, rows in split.reference.items()}
    whole = pd.concat(list(reference.values()), ignore_index=True)
    cuts = Calibration.cuts_of({drift.OVERALL: whole, **reference}, policy)
    rows: list[dict[str, object]] = []
    found: Scores = {"ours": [], "ours_persistent": []}

    def told(scope: str, now: pd.DataFrame, was: pd.DataFrame, worth: float) -> dict[str, object]:
        counts = {n: drift.counted(n, now[n], was[n], cuts[scope][n], worth, policy) for n in now}
        return {"columns": {name: {"tally": asdict(one)} for name, one in counts.items()}}

    for number, window in enumerate(windows):
        here, site = clean(window), window["site"].to_numpy()
        mixed, worth = drift.mixed_reference(reference, window["site"].value_counts().to_dict(), policy.reference_rows)
        scopes = {drift.OVERALL: told(drift.OVERALL, here, mixed, worth)}
        for name, own in reference.items() if len(reference) > 1 else ():
            if (part := here[site == name]).shape[0] >= policy.site_minimum_rows:
                scopes[name] = told(name, part, own, len(own))
        rows.append({"window": number, "started_at": 0.0, "ended_at": 0.0, "evidence": {"scopes": scopes}})
        for name, persistence in (("ours", 1), ("ours_persistent", 2)):
            alarm = AlarmPolicy(persistence=persistence)
            found[name].append(detect(rows[-alarm.memory_windows :], alarm).log_total)
    return found


def one_run(
    split: Split, drift: Drift, before: int, after: int, seed: int, levels: Mapping[str, float], methods: Sequence[str]
) -> Scores:
    """Every method's score after each window of the same run; in a drift up to its alarm.

    levels: where they alarm. A method that has by the fourth drifted window is not shown the others.
    """
    draw = split.begin(np.random.default_rng([seed, 7]))
    windows = [draw(ROWS, Drift() if number < before else drift) for number in range(before + after)]
    scores: Scores = {}
    for method in methods:
        found = METHODS[method](split, windows[: before + 4])
        if after > 4 and any(max(found[each]) < levels.get(each, np.inf) for each in found):
            found = METHODS[method](split, windows)
        scores |= found
    return scores


def _of(name: str) -> Method:
    return lambda split, windows: {name: PEERS[name](split.reference, windows)}


METHODS: Mapping[str, Method] = {"ours": ours, **{name: _of(name) for name in PEERS}}


def threshold(runs: Sequence[Scores], name: str, per_1000: float) -> float:
    """The lowest that at most so many stable runs reach."""
    known = [run[name] for run in runs if name in run]
    highest = sorted((max(scores) for scores in known), reverse=True)
    allowed = int(per_1000 * sum(map(len, known)) / 1000.0)
    return float(np.nextafter(highest[allowed], np.inf)) if allowed < len(highest) else -np.inf


def delays(runs: Sequence[Scores], name: str, level: float, before: int) -> list[int]:
    """Windows from the drift to the alarm, one more than there were where none came; runs with a false alarm are left
    out.
    """
    found = []
    for run in runs:
        scores = np.array(run[name])
        if (scores[:before] < level).all():
            late = np.flatnonzero(scores[before:] >= level)
            found.append(int(late[0]) + 1 if len(late) else AFTER + 1)
    return found


def measure(name: str, stable_runs: int, drift_runs: int, after: int, say: Console) -> dict[str, object]:
    """One stream: false alarms over its stable runs, and every drift's mean delays."""
    from monitoring.policy import AlarmPolicy

    stream, level, began = STREAMS[name], AlarmPolicy().log_level, time.monotonic()
    splits = [stream.split(seed) for seed in range(min(5, stable_runs))]
    stable = []
    for run in range(stable_runs):
        enough = {"ours": stable_runs, "kswin": KSWIN_RUNS}
        methods = [each for each in METHODS if run < enough.get(each, PEER_RUNS)]
        stable.append(one_run(splits[run % len(splits)], Drift(), STABLE, 0, run, {}, methods))
    windows = sum(len(run["ours"]) for run in stable)
    measured = {each: threshold(stable, each, AlarmPolicy().false_per_1000) for each in stable[0]}
    levels = measured | {"ours": level, "ours_persistent": level}
    false = {each: sum(max(run.get(each, [-np.inf])) >= levels[each] for run in stable) for each in levels}
    say.print(f"{name}: {windows} stable windows in {time.monotonic() - began:.0f} s; false alarms {false}")
    found: dict[str, object] = {}
    for drift, how in list(stream.drifts.items())[: None if drift_runs > 1 else 2]:
        runs = [
            one_run(splits[run % len(splits)], how, BEFORE, after, 1000 + run, levels, list(METHODS))
            for run in range(drift_runs)
        ]
        taken = {each: delays(runs, each, levels[each], BEFORE) for each in levels}
        taken["ours_same_way"] = delays(runs, "ours", measured["ours"], BEFORE)
        # A threshold that fails in the stable beginnings does not hold the rate, and its delays say nothing.
        held = {each: len(values) == drift_runs for each, values in taken.items()}
        mean = {each: round(float(np.mean(values)), 2) if held[each] else None for each, values in taken.items()}
        peers = {each: mean[each] for each in PEERS if mean[each] is not None}
        best = min(peers, key=lambda each: peers[each])
        found[f"{name}.{drift}"] = {
            "ours": mean["ours"], "best_peer": peers[best], "which": best, "ours_persistent": mean["ours_persistent"],
            "ours_same_way": mean["ours_same_way"], "peers": peers, "runs": drift_runs, "not_noticed_after": after,
        }  # fmt: skip
        say.print(f"  {drift}: {mean}")
    return {"windows": windows, "false": false, "levels": levels, "delay": found}


def table(delay: Mapping[str, Mapping[str, object]]) -> Table:
    shown = Table(title="windows until the alarm (means)", title_justify="left")
    for column in ("drift", "ours", "waiting for two", *PEERS):
        shown.add_column(column, justify="left" if column == "drift" else "right")
    for drift, row in delay.items():
        peers = [str(row["peers"].get(each, "")) for each in PEERS]  # type: ignore[attr-defined]
        shown.add_row(drift, str(row["ours"]), str(row["ours_persistent"]), *peers)
    return shown


def plot(found: Mapping[str, Any], path: Path) -> None:
    """One row a drift, one mark a method."""
    import matplotlib.pyplot as plt

    delay: Mapping[str, Mapping[str, Any]] = found["delay"]
    drifts = list(delay)[::-1]
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(drifts) + 2.2), layout="constrained")
    marks = {
        "ours": ("fedloop, its stated level", "o", "black"),
        "ours_same_way": ("fedloop, level set as for the others", "o", "none"),
        "evidently": ("Evidently's drift share", "s", None),
        "adwin": ("ADWIN", "^", None),
        "kswin": ("KSWIN", "v", None),
        "page_hinkley": ("Page-Hinkley", "D", None),
    }
    for offset, (method, (label, mark, face)) in enumerate(marks.items()):
        values = [delay[d].get(method, delay[d]["peers"].get(method)) for d in drifts]
        known = [(value, place + 0.3 - 0.12 * offset) for place, value in enumerate(values) if value is not None]
        colour = {"mfc": face, "mec": "black", "zorder": 3} if face else {"alpha": 0.75}
        axis.plot(*zip(*known, strict=True), mark, ls="none", ms=5, label=label, **colour)  # type: ignore[arg-type]
    axis.axvspan(AFTER + 0.5, AFTER + 1.5, color="0.9")
    axis.text(AFTER + 1.0, -0.62, "not at all", ha="center", va="bottom", fontsize=7, color="0.3")
    for place in range(1, len(drifts)):
        axis.axhline(place - 0.5, color="0.92", lw=0.8)
    axis.set_yticks(range(len(drifts)), [d.replace(".", ": ", 1) for d in drifts], fontsize=8)
    axis.set_ylim(-0.65, len(drifts) - 0.4)
    axis.set_xlabel(f"windows of {ROWS} rows until the alarm (mean of runs; further left is better)")
    false = f"{found['false']} false alarms of ours in {found['stable_windows']:,} stable windows"
    axis.set_title(f"How soon does the alarm come, at one false alarm in 1,000 windows? {false}", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--runs", type=int, default=3, help="of every drift")
    arguments = parser.parse_args()
    say = Console(width=150)
    stable_runs, drift_runs, after = (1, 1, 5) if arguments.quick else (20, arguments.runs, AFTER)
    quick_kswin()
    kept = RESULTS / "alarm.json"
    parts: dict[str, Any] = json.loads(kept.read_text())["streams"] if kept.is_file() and not arguments.quick else {}
    for name in arguments.streams.split(","):
        try:
            parts[name] = measure(name, stable_runs, drift_runs, after, say)
        except FileNotFoundError as error:
            say.print(f"{name} is left out: {error.filename} is not there; FEDLOOP_DATA names the folder")
            continue
        if not arguments.quick:  # hours: what is done is kept
            found = together(parts)
            kept.write_text(json.dumps(found, indent=2) + "\n")
            plot(found, RESULTS / "alarm.png")
    say.print(table(together(parts)["delay"]))


def together(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    windows = sum(part["windows"] for part in parts.values())
    false = {each: sum(part["false"][each] for part in parts.values()) for each in ("ours", "ours_persistent")}
    return {
        "rows_per_window": ROWS,
        "stable_windows": windows,
        "false": false["ours"],
        "false_per_1000": 1000.0 * false["ours"] / windows,
        "false_per_1000_persistent": 1000.0 * false["ours_persistent"] / windows,
        "delay": {drift: row for part in parts.values() for drift, row in part["delay"].items()},
        "streams": parts,
    }


if __name__ == "__main__":
    main()
