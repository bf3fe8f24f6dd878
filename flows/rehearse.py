"""`make run`: the whole loop on one machine, with a drift and the recovery from it.

Nothing here is faked: real servers, real HTTP traffic, a real alarm, and a retraining that Prefect starts by itself.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from flows.console import CONSOLE, narrate, say
from flows.memory import PeakMemory
from flows.ports import free_ports
from flows.processes import House, house
from models.errors import FedloopError
from models.task import Rows, find_task
from monitoring import alarm
from monitoring.dashboard import Dashboard
from monitoring.engines import set_aside
from monitoring.traffic import TrafficLog
from pipelines import registry, release, replay
from pipelines.figures import figures
from pipelines.gather import deposit_truth, site_plan
from pipelines.report import Moments, Summary, picture, table
from pipelines.settings import Settings, load_settings

STABLE_WINDOWS = 21
PATIENCE_S = 240.0
PROCESSES = ("prefect", "service", "flows")


class Rehearsal:
    """One run of the loop on one machine; the methods are its acts, in order."""

    def __init__(self, settings: Settings, severity: str) -> None:
        self.settings, self.task = settings, settings.task
        self.drifting = next(iter(self.task.corruptions.values()))
        self.severity = self.drifting.strength(severity)
        self.plan = site_plan(settings)
        self.data = self.task.load()
        self.summary, self.moments = Summary(), Moments()
        self.truth: dict[str, tuple[str, int]] = {}  # request → (phase, true label)
        self.tallies: list[replay.Tally] = []
        self.started = time.monotonic()
        self.rows = settings.drift.window_rows

    # -- the acts ---------------------------------------------------------------------------------------------

    def build(self, running: House) -> None:
        """Act 1: from raw images to a champion that serves."""
        from flows.retrain import retrain

        with self.timed("build"):
            running.wait(["prefect"])
            retrain(task=self.settings.task_name, cause="bootstrap")
        with self.timed("deploy"):
            running.wait()
            self.await_version(self.champion())

    def stable(self) -> None:
        """Act 2: traffic as in training; the monitor must keep still."""
        chunk = 7
        for first in range(0, STABLE_WINDOWS, chunk):
            count = min(chunk, STABLE_WINDOWS - first) * self.rows
            with self.timed("stable traffic"):
                self.send("stable", _both(self.data.live, self.data.probe), count, f"stable-{first}", dark=False)
            self.watch()
        found = alarm.windows(self.log.engine)
        self.summary.put("alarm", false=len(alarm.decisions(self.log.engine)), stable_windows=len(found))
        say(f"watch: {len(found)} stable windows, {int(found['odd'].sum())} odd, {self.alarms()} alarms")

    def drift(self) -> int:
        """Act 3: the lamp goes out; returns the decision that the alarm wrote."""
        self.moments.drift = time.time()
        say(f"drift: {self.drifting.name} at every site, severity {self.severity:g}")
        for number in range(1, 9):
            with self.timed("dark traffic"):
                self.send("dark", self.data.live, self.rows, f"dark-{number}")
            self.watch()
            newer = [one for one in alarm.decisions(self.log.engine) if one.created_at >= self.moments.drift]
            decided = [one for one in newer if one.answer == "retrain"]
            if decided:
                self.moments.alarm = decided[-1].created_at
                evidence = str(decided[-1].evidence.get("sentence", ""))
                self.summary.put("alarm", windows_to_alarm=number, evidence=evidence)
                say(f"alarm: after {number} dark windows: {evidence}")
                while number * self.rows < self.settings.retrain.minimum_new_rows:
                    number += 1
                    self.send("dark", self.data.live, self.rows, f"dark-{number}")
                self.watch()
                return int(decided[-1].decision)
        early = [one.sentence for one in alarm.decisions(self.log.engine)]
        why = f"a false alarm had come before ({early[0]}) and keeps others away" if early else "see the dashboard"
        raise FedloopError(f"no alarm came within 8 dark windows: {why}")

    def recover(self, decision: int) -> None:
        """Act 4: Prefect starts the retraining, the gate decides, the service swaps; traffic never stops."""
        before = self.champion()
        done = threading.Event()
        stream = threading.Thread(target=self._stream, args=(done,), name="traffic")
        stream.start()
        try:
            with self.timed("retrain"):
                self._await_decision(decision)
            after = self.champion()
            if after != before:
                with self.timed("swap"):
                    self.await_version(after)
                self.moments.swap = time.time()
                say(f"swap: the service answers with version {after}")
                time.sleep(1.0)
            else:
                say("swap: the gate held the challenger back; the champion stays")
        finally:
            done.set()
            stream.join()
        with self.timed("dark traffic"):
            self.send("after", self.data.probe, 3 * self.rows, "after")
            self.send("clean", self.data.probe, self.rows, "clean", dark=False)
        self.watch()

    def conclude(self, peak_mb: float) -> Path:
        """Act 5: the oracle, the table, the picture."""
        settings = self.settings
        with self.timed("oracle"):
            answers = self.log.between(0, self.log.last_seq() + 1)
            asked = answers["request_id"].map(self.truth)
            answers = answers.assign(phase=asked.str[0], truth=asked.str[1])
            answered = {request for tally in self.tallies for request in tally.answered}
            failed = sum(len(tally.failed) for tally in self.tallies)
            self.summary.put(
                "requests", answered=len(answered), failed=failed, unlogged=len(self.log.missing_requests(answered))
            )
            figures(settings, self.summary, answers)
        out = settings.out / self.task.name
        oracle = self.summary.values["accuracy"]["oracle_during_retrained"]
        windows = alarm.windows(self.log.engine)
        image = picture(answers, windows, self.moments, self.task, oracle, out / "recovery.png")
        self.summary.put("memory", peak_mb=round(peak_mb))
        self.summary.put("seconds", total=time.monotonic() - self.started)
        self.summary.save(out / "summary.json")
        from pipelines.tracking import Run

        run = Run.start(settings, name="rehearsal", key=f"rehearsal-{int(time.time())}")
        run.artifact(image)
        run.artifact(out / "summary.json")
        run.end()
        return image

    # -- traffic ----------------------------------------------------------------------------------------------

    def send(self, phase: str, rows: Rows, count: int, tag: str, dark: bool = True, concurrency: int = 16) -> None:
        drift, severity = (self.drifting, self.severity) if dark else (None, 0.0)
        captures = replay.captures(
            self.task, rows, self.plan.cameras, self.plan.label_mix, count, self.settings.seed, drift, severity,
            start_at=time.time(), tag=tag,
        )  # fmt: skip
        deposit_truth(self.settings, captures)
        self.truth |= {capture.request_id: (phase, capture.label) for capture in captures}
        tally = replay.replay(self.settings.url("service"), captures, concurrency=concurrency, feedback_share=0.2)
        self.tallies.append(tally)

    def _stream(self, done: threading.Event) -> None:
        """Dark traffic without a pause while the model is retrained and swapped, gently: the machine is small."""
        number = 0
        while not done.is_set():
            number += 1
            self.send("dark", self.data.probe, 25, f"stream-{number}", concurrency=2)
            done.wait(0.3)

    # -- watching ---------------------------------------------------------------------------------------------

    @cached_property
    def log(self) -> TrafficLog:
        """Opened once: it is asked five times a second while a retraining runs."""
        return TrafficLog.open(self.settings.database_url, self.settings.images)

    def watch(self) -> None:
        from flows.monitor import monitor

        with self.timed("watch"):
            monitor(task=self.settings.task_name)

    def alarms(self) -> int:
        return len(alarm.decisions(self.log.engine))

    def champion(self) -> int:
        found = registry.by_alias(self.settings, "champion")
        if found is None:
            raise FedloopError("the gate held the first model back; `fedloop report` shows its figures")
        return found.number

    def await_version(self, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while replay.serving_version(self.settings.url("service")) != number:
            if time.monotonic() > deadline:
                raise FedloopError(f"the service did not take up version {number} within {PATIENCE_S:.0f} s")
            time.sleep(0.1)

    def _await_decision(self, decision: int) -> None:
        """Until the retraining is done, telling what the served flows say of it."""
        deadline = time.monotonic() + PATIENCE_S
        with narrate(self.settings.home / "logs" / "flows.log"):
            while True:
                row = next(d for d in alarm.decisions(self.log.engine) if d.decision == decision)
                if row.state == "running" and not self.moments.retrain:
                    self.moments.retrain = row.updated_at
                    say("retrain: Prefect has started the retraining by itself")
                if row.state in ("done", "failed"):
                    self.moments.retrained = row.updated_at
                    say(f"retrain: {row.outcome}")
                    return
                if time.monotonic() > deadline:
                    raise FedloopError(f"the retraining was not done within {PATIENCE_S:.0f} s (state: {row.state})")
                time.sleep(0.2)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        spent = self.summary.values.setdefault("seconds", {})
        spent[step] = spent.get(step, 0.0) + time.monotonic() - start


def rehearse(task_name: str = "digits", severity: str = "strong") -> Path:
    """Run the whole loop once; returns the folder with the table, the summary and the picture."""
    for drift in find_task(task_name).corruptions.values():
        drift.strength(severity)
    os.environ["FEDLOOP_STAGE"] = "rehearsal"
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    # Three windows of the drifted traffic, no more and no less: the same rehearsal twice learns from the same rows.
    rows = str(3 * load_settings(task_name).drift.window_rows)
    os.environ.setdefault("FEDLOOP_RETRAIN__MINIMUM_NEW_ROWS", rows)
    os.environ.setdefault("FEDLOOP_RETRAIN__MAXIMUM_NEW_ROWS", rows)
    configured = load_settings(task_name)
    settings = free_ports(configured)
    settings.apply_environment()
    with PeakMemory() as memory, house(settings, (), say=say, wait=False) as running:
        # Not before the home is ours: another rehearsal's log would be moved away under its feet.
        _fresh_log(settings)
        running.begin(PROCESSES)
        act = Rehearsal(settings, severity)
        Dashboard(settings.dashboard, settings.model_name).clear()
        release.retire(settings, "a new rehearsal starts")
        act.build(running)
        act.stable()
        decision = act.drift()
        act.recover(decision)
        image = act.conclude(memory.peak_mb)
    CONSOLE.print()
    CONSOLE.print(table(act.summary, act.task, f"fedloop rehearsal: {act.task.name}"))
    _where_to_look(task_name, configured, image)
    return image.parent


def _where_to_look(task_name: str, shown: Settings, image: Path) -> None:
    """The files, and the addresses where `make up` shows the registry, the dashboard and the flow runs."""
    model = shown.model_name
    for name, where in (
        ("picture", str(image)),
        ("figures", str(image.parent / "summary.json")),
        ("look", f"`make up TASK={task_name}` shows what this rehearsal left, and runs the loop for good:"),
        ("  registry", shown.url("mlflow") + f"/#/models/{model}?workflowType=machine_learning"),
        ("  dashboard", shown.url("dashboard")),
        ("  flow runs", shown.url("prefect") + "/runs"),
    ):
        CONSOLE.print(f"[bold]{name:<11}[/bold] {where}")


def _fresh_log(settings: Settings) -> None:
    """Every rehearsal has a traffic log of its own; the one before is kept beside it."""
    previous = settings.folder / "previous"
    shutil.rmtree(previous, ignore_errors=True)
    previous.mkdir(parents=True, exist_ok=True)
    if settings.database_url.startswith("postgres"):
        set_aside(settings.database_url)
    for name in ("log.db", "log.db-wal", "log.db-shm", "images", "spool"):
        path = settings.folder / name
        if path.exists():
            path.rename(previous / name)


def _both(first: Rows, second: Rows) -> Rows:
    return Rows([*first.images, *second.images], [*first.labels, *second.labels])
