"""Is retraining on an alarm as good as retraining all the time, and how much cheaper? Whole streams without servers.

    python benchmarks/recovery.py [--quick] [--streams digits_abrupt_all elec2 ...] [--show]

Four strategies live through the same stream, window after window, from the same first model. `never` keeps it.
`schedule` retrains every eighth window on what has come since, `every_window` after each; both put what comes out into
service, as who retrains by the calendar does. `loop` is fedloop: its monitor judges the window, its alarm decides, the
run that the decision asks for ends at its gate. The steps of a retraining are the same for all (`gather`, `adapt`,
`buy_labels`, `fit`, `judge_challenger`, `enter_registry`), with a label bought for a tenth of the rows; clinics tell
the truth of a fifth of the traffic, which only judges.

accuracy: the mean over the windows, of the model that served when the window began. labels, retrainings: in the stream
(the first model's are the same for all). false_promotions: a new version whose answers in the windows until the next
one (its own was learned from, and does not count) are worse than the old version's would have been, by more than two
standard errors of the paired difference. told: what the alarm and the gate said. A cell that was measured is kept
under $FEDLOOP_HOME/recovery and not measured again: remove it after a change of the loop. --quick: digits alone, six
windows, less training.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from recovery_worlds import RECIPE, STREAMS, World
from rich.console import Console
from rich.table import Table

from models.images import content_hash
from models.quality import quality
from monitoring import alarm
from monitoring.traffic import Label, Prediction, TrafficLog
from pipelines import challenger, gather, loop, release, watch
from pipelines.federated.files import digest, write_atomically
from pipelines.federated.jobs import Parameters
from pipelines.federated.scoring import class_probabilities
from pipelines.federated.store import stack_images
from pipelines.replay import SOURCE
from pipelines.tracking import connection

RESULTS = Path(__file__).parent / "results" / "recovery.json"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "recovery_streams.png"
CELLS = Path(os.environ.get("FEDLOOP_HOME", ".fedloop")).absolute() / "recovery"
STRATEGIES = ("never", "schedule", "every_window", "loop")
EVERY = 8
FEEDBACK = 0.2
SETTLED_S = 60.0  # after a window's last row the monitor looks
TOO_FAR, SHARE = 0.03, 0.25  # what the loop may lose against every_window, and what it may cost of it


@dataclass
class Course:
    """What a strategy went through. versions: those that served, by the window from which they did."""

    versions: list[tuple[int, int, Parameters]] = field(default_factory=list)
    labels: int = 0
    retrained: list[int] = field(default_factory=list)
    held_back: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def serving(self) -> tuple[int, Parameters]:
        return self.versions[-1][1:]


def live_through(world: World, strategy: str, every: int = EVERY) -> Course:
    settings, course = world.settings, Course()
    _retrain(world, course, 0, None, gated=False)
    course.labels, course.retrained = 0, []
    log, since = TrafficLog.open(settings.database_url, settings.images), 1
    for number, now in enumerate(world.ends_at):
        _serve(world, log, number, *course.serving)
        if strategy == "loop":
            _answer_the_alarm(world, course, log, number, now + SETTLED_S)
        elif strategy == "every_window" or (strategy == "schedule" and (number + 1) % every == 0):
            _retrain(world, course, number + 1, since, gated=False)
            since = log.last_seq() + 1
    log.close()
    return course


def _serve(world: World, log: TrafficLog, number: int, version: int, weights: Parameters) -> None:
    """The traffic of a window into the log, with the version's answers and what clinics say of them."""
    task, shots = world.settings.task, world.windows[number].traffic
    images = stack_images((shot.png for shot in shots), task.input)
    chances, seen = class_probabilities(task, weights, images), quality(images).to_numpy()
    names = [content_hash(shot.png) for shot in shots]
    log.record(
        [
            Prediction(
                shot.request_id, shot.request_id, shot.site, shot.at, version, shot.png, name,
                int(chance.argmax()), float(chance.max()), chance.tolist(), values.tolist(),
            )
            for shot, name, chance, values in zip(shots, names, chances, seen, strict=True)
        ]
    )  # fmt: skip
    # By the hash of the picture, as a replay has it: the same rows for every strategy.
    said = [s for s, name in zip(shots, names, strict=True) if int(name[:8], 16) / 2**32 < FEEDBACK]
    log.label_all([Label(shot.request_id, shot.label, SOURCE, shot.at) for shot in said])
    gather.deposit_truth(world.settings, shots)


def _answer_the_alarm(world: World, course: Course, log: TrafficLog, number: int, now: float) -> None:
    """The monitor's look, and the run that its decision asks for: what the retrain flow does with a claimed row."""
    settings = world.settings
    for report in watch.look(settings, now=now, draw=False):
        if report.decision is not None:
            course.told.append(f"window {number}: {report.decision.answer}: {report.decision.sentence}")
            if report.decision.answer != "retrain":
                alarm.acknowledge(log.engine, report.decision.decision, "somebody looked; nothing is broken", now)
    for decision in watch.ready(settings):
        alarm.emitted(log.engine, decision.decision, now)
        assert alarm.claim(log.engine, decision.decision, f"window {number}", now)
        _retrain(world, course, number + 1, int(decision.evidence["from_seq"]), gated=True)
        alarm.finish(log.engine, decision.decision, "benchmark", now=now)


def _retrain(world: World, course: Course, serves_from: int, since: int | None, gated: bool) -> None:
    """The retrain flow's steps; what passes serves from the next window on. since: None, the first training."""
    settings = world.first if since is None else world.settings
    material = world.material() if since is None else gather.gather(settings, from_seq=since)
    adapted = loop.adapt(settings, material)
    labelled, trained = None, adapted
    found = challenger.spare_labels(settings, material, adapted) if gated else None
    if found is None or trained is None:
        labelled = loop.buy_labels(settings, material, adapted)
        trained = loop.fit(settings, material, labelled, adapted)
        found = challenger.judge_challenger(settings, material, trained)
    version = challenger.enter_registry(settings, material, labelled, trained, found)
    course.labels += labelled.newly_bought if labelled else 0
    course.retrained.append(serves_from - 1)
    if gated:
        challenger.decide(settings, material, version, found.verdict, alarm.DRIFT)
        course.told.append(f"window {serves_from - 1}: {found.verdict}")
    else:
        release.promote(settings, version.number, "benchmark")
    if gated and not found.verdict.passed:
        course.held_back.append(serves_from - 1)
        return
    assert release.champion(settings) == version.number
    course.versions.append((serves_from, version.number, loop.trained_weights(trained)))


# -- what came of it --------------------------------------------------------------------------------------------


def gained(new: NDArray[np.bool_], old: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of rows [n] that the new version gains over the old one, and its standard error."""
    gain = new.astype(float) - old.astype(float)
    return float(gain.mean()), float(gain.std() / np.sqrt(len(gain)))


def judged(world: World, course: Course) -> dict[str, Any]:
    """The figures of a cell."""
    task = world.settings.task
    ends = [start for start, _, _ in course.versions[1:]] + [len(world.windows)]
    chances: list[NDArray[np.float64]] = []
    false, gains = [], []
    for place, (start, _, weights) in enumerate(course.versions):
        served = range(start, ends[place])
        chances += [class_probabilities(task, weights, world.windows[number].images) for number in served]
        if place and served:
            before = course.versions[place - 1][2]
            images = np.concatenate([world.windows[number].images for number in served])
            truth = np.concatenate([world.windows[number].labels for number in served])
            new, old = (class_probabilities(task, each, images).argmax(axis=1) == truth for each in (weights, before))
            gain, error = gained(new, old)
            gains.append([start, round(gain, 4), round(error, 4)])
            if gain < -2.0 * error:
                false.append(start)
    right = [c.argmax(axis=1) == w.labels for c, w in zip(chances, world.windows, strict=True)]
    found: dict[str, Any] = {
        "accuracy": round(float(np.mean([each.mean() for each in right])), 4),
        "labels": course.labels,
        "retrainings": len(course.retrained),
        "false_promotions": len(false),
        "promotions": len(course.versions) - 1,
        "held_back": course.held_back,
        "retrained": course.retrained,
        "gains": gains,
        "windows": [round(float(each.mean()), 4) for each in right],
        "told": course.told,
    }
    if task.metric == "auc":
        from models.scores import mean_auc

        aucs = [mean_auc(c, w.labels) for c, w in zip(chances, world.windows, strict=True)]
        found["auc"] = round(float(np.mean(aucs)), 4)
    truth = np.concatenate([window.labels for window in world.windows])
    found["same_as_last"] = round(float((truth[1:] == truth[:-1]).mean()), 4)
    return found


def measure(stream: str, strategy: str, path: Path, quick: bool) -> dict[str, Any]:
    """One cell, in a home of its own; what a first training left is taken along, and found by its content."""
    began, spent = time.monotonic(), time.process_time()
    kept, database = path.parent / f"first-{stream.split('_')[0]}", path.parent / "mlflow.db"
    with tempfile.TemporaryDirectory() as home:
        os.environ["FEDLOOP_HOME"] = home
        world = STREAMS[stream](quick)
        (Path(home) / "mlflow").mkdir()
        if not database.is_file():
            with connection(world.settings):  # the hundred migrations of a new database, once
                database.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(home) / "mlflow" / "mlflow.db", database)
        shutil.copy(database, Path(home) / "mlflow" / "mlflow.db")
        if kept.is_dir():
            shutil.copytree(kept, world.settings.folder)
        else:
            _retrain(world, Course(), 0, None, gated=False)
            release.retire(world.settings, "the first training is kept for the next cell")
            left = shutil.ignore_patterns("log.db*", "images", "models", "reference", "thresholds", "*.lock")
            shutil.copytree(world.settings.folder, kept, ignore=left)
        found = judged(world, live_through(world, strategy, 4 if quick else EVERY))
    found |= {"seconds": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - spent, 1)}
    write_atomically(path, json.dumps(found).encode())
    return found


# -- showing it -------------------------------------------------------------------------------------------------


def cell(stream: str, strategy: str, quick: bool) -> Path:
    folder = f"{'quick' if quick else 'full'}-{digest(RECIPE, EVERY, FEEDBACK)}"
    return CELLS / folder / f"{stream}-{strategy}.json"


def collected(quick: bool) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for stream in STREAMS:
        own = {s: json.loads(p.read_text()) for s in STRATEGIES if (p := cell(stream, s, quick)).is_file()}
        if own:
            found[stream] = own | _compared(own)
    return found


def _compared(own: Mapping[str, Any]) -> dict[str, Any]:
    """The loop against retraining every window: the target's figures."""
    if not {"loop", "every_window"} <= set(own):
        return {}
    ours, theirs = own["loop"], own["every_window"]
    lost = theirs["accuracy"] - ours["accuracy"]
    shares = {name: round(ours[name] / max(theirs[name], 1), 3) for name in ("labels", "retrainings")}
    held = lost <= TOO_FAR and max(shares.values()) <= SHARE and not ours["false_promotions"]
    return {"compared": {"lost": round(lost, 4), **{f"{k}_share": v for k, v in shares.items()}, "held": held}}


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(
        title="Accuracy over the stream / labels bought / retrainings / false promotions", title_justify="left"
    )
    for column in ("stream", *STRATEGIES, "loop less every_window", "labels", "retrainings", "target"):
        table.add_column(column, justify="left" if column == "stream" else "right")
    for stream, own in found.items():
        cells = [
            f"{c['accuracy']:.3f} / {c['labels']} / {c['retrainings']} / {c['false_promotions']}" if c else "–"
            for c in (own.get(strategy) for strategy in STRATEGIES)
        ]
        c = own.get("compared")
        last = [f"{-c['lost']:+.3f}", f"{c['labels_share']:.0%}", f"{c['retrainings_share']:.0%}"] if c else [""] * 3
        table.add_row(stream, *cells, *last, ("held" if c["held"] else "missed") if c else "")
    Console(width=170).print(table)
    if "elec2" in found:
        print(
            f"elec2: the same label as last time is right for {next(iter(found['elec2'].values()))['same_as_last']:.3f}"
        )


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy over the windows, a panel a stream; dots are the loop's retrainings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(found) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.3 * rows), squeeze=False)
    style = {"never": ("0.55", ":"), "schedule": ("C1", "--"), "every_window": ("C0", "-"), "loop": ("C3", "-")}
    for axis, (stream, own) in zip(axes.flat, found.items(), strict=False):
        for strategy, (colour, line) in style.items():
            if strategy not in own:
                continue
            c = own[strategy]
            label = f"{strategy.replace('_', ' ')}: {c['accuracy']:.3f}, {c['labels']} labels"
            axis.plot(c["windows"], color=colour, linestyle=line, linewidth=1.4, label=label)
            if strategy == "loop":
                axis.plot(c["retrained"], [c["windows"][i] for i in c["retrained"]], "o", color=colour, ms=5)
        if stream == "elec2":
            axis.axhline(
                next(iter(own.values()))["same_as_last"], color="k", linewidth=0.8, label="same label as last time"
            )
        axis.set_title(stream.replace("_", " "), fontsize=10)
        axis.set_xlabel("window", fontsize=8)
        axis.set_ylabel("accuracy", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6.5, loc="best", framealpha=0.6)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    figure.suptitle("Does retraining on an alarm keep up with retraining every window? Dots: the loop retrains")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--show", action="store_true", help="measure nothing, write what there is")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    streams = ["digits_abrupt_all"] if options.quick else options.streams
    for stream, strategy in [(a, b) for a in streams for b in options.strategies] if not options.show else []:
        path = cell(stream, strategy, options.quick)
        if options.quick or not path.is_file():
            own = measure(stream, strategy, path, options.quick)
            print(
                f"{stream} {strategy}: {own['accuracy']:.3f}, {own['seconds']:.0f} s ({own['cpu_s']:.0f} s of CPU)",
                flush=True,
            )
    found = collected(options.quick)
    show(found)
    if not options.quick:
        write_atomically(RESULTS, json.dumps(found, indent=1).encode() + b"\n")
        draw(found, PLOT)


if __name__ == "__main__":
    main()
