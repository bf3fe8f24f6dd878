"""What a run of the loop learns from and is judged on: a task's first rows, or the champion's and new traffic."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models.images import content_hash
from models.task import Rows
from monitoring.traffic import TrafficLog
from pipelines import registry
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.queue import People
from pipelines.federated.site import sites_of
from pipelines.federated.store import SiteStore
from pipelines.ingest import Ingested, ingest
from pipelines.partition import SitePlan, divide, plan_sites
from pipelines.replay import Capture
from pipelines.settings import Settings
from pipelines.summarize import Snapshots

LOG = logging.getLogger("fedloop")


@dataclass(frozen=True)
class Material:
    """What one run of the loop learns from and is judged on.

    train, evaluation: site → snapshot ids, everything. new: those training snapshots that have no labels yet.
    recent: those that the champion has not learned from, with labels or without. fresh: the evaluation snapshots of
    this run's traffic. labellings: the ones already made. parent: the champion's version, which training starts from.
    """

    train: dict[str, tuple[str, ...]]
    evaluation: dict[str, tuple[str, ...]]
    new: dict[str, tuple[str, ...]]
    recent: dict[str, tuple[str, ...]]
    fresh: dict[str, tuple[str, ...]]
    labellings: tuple[str, ...]
    parent: int | None
    new_rows: int
    quarantined: int
    reused: bool

    @property
    def known(self) -> dict[str, tuple[str, ...]]:
        """The training snapshots that have labels."""
        return _without(self.train, self.new)


def site_stores(settings: Settings) -> dict[str, SiteStore]:
    """The sites there are in this stage, by name."""
    root = settings.folder / "sites"
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return {name: SiteStore(root / name) for name in names}


def embedded_engine(settings: Settings) -> LocalEngine:
    torch.set_num_threads(settings.training.threads)
    people = People() if settings.labels.annotator == "desk" else None
    return LocalEngine(sites_of(settings.task, site_stores(settings), people))


def site_plan(settings: Settings) -> SitePlan:
    return plan_sites(settings.task, settings.sites, settings.seed)


def deposit_truth(settings: Settings, captures: Iterable[Capture]) -> None:
    """Put what replayed pictures really show into the sites' archives, where an annotator may ask for it."""
    by_site: dict[str, dict[str, int]] = {}
    for capture in captures:
        by_site.setdefault(capture.site, {})[content_hash(capture.png)] = capture.label
    for site, labels in by_site.items():
        SiteStore(settings.folder / "sites" / site).deposit(labels)


def gather(settings: Settings, from_seq: int | None = None) -> Material:
    """The rows of a run: the task's own where there is no champion yet, else the champion's and the new traffic.

    from_seq: where in the traffic log the new rows begin; None takes the latest, if there are enough of them.
    """
    champion = registry.by_alias(settings, "champion")
    if champion is None:
        return _gather_first(settings)
    # What a challenger that was held back has cost in labels, the next one learns from too.
    held = {"fedloop.parent": str(champion.number), "fedloop.gate_passed": "false"}
    before = [each for each in registry.versions(settings) if held.items() <= each.tags.items()]
    learned = max([champion, *before], key=lambda each: each.number)
    train, evaluation = (json.loads(learned.tags[f"fedloop.snapshots.{split}"]) for split in ("train", "evaluation"))
    labellings = tuple(json.loads(learned.tags["fedloop.labellings"]))
    recent = _without(frozen(train), frozen(json.loads(champion.tags["fedloop.snapshots.train"])))
    known = Material(frozen(train), frozen(evaluation), {}, recent, {}, labellings, champion.number, 0, 0, True)
    if from_seq is None:
        log = TrafficLog.open(settings.database_url, settings.images)
        if log.count() < settings.retrain.minimum_new_rows:
            LOG.info("ingest: too little new traffic; the champion's rows are used again")
            return known
        from_seq = max(1, log.last_seq() - settings.retrain.maximum_new_rows + 1)
    return _gather_traffic(settings, known, from_seq)


def _gather_first(settings: Settings) -> Material:
    task, plan = settings.task, site_plan(settings)
    data = task.load()
    found = {}
    for split, pool in (("train", data.development), ("evaluation", data.evaluation)):
        rows = divide(pool, plan, task, settings.seed)
        found[split] = _ingest_all(settings, rows, split, f"{task.name}:{split}", {})
    train, evaluation = found["train"], found["evaluation"]
    snapshots = {site: done.snapshots for site, done in train.items()}
    material = Material(
        train=snapshots,
        evaluation={site: done.snapshots for site, done in evaluation.items()},
        new=snapshots,
        recent={},
        fresh={},
        labellings=(),
        parent=None,
        new_rows=sum(done.new_rows for done in train.values()),
        quarantined=sum(done.quarantined for done in (*train.values(), *evaluation.values())),
        reused=all(done.reused for done in (*train.values(), *evaluation.values())),
    )
    judged = sum(done.new_rows for done in evaluation.values())
    LOG.info(
        "ingest: %d sites, %d rows to learn from, %d to be judged on, %d in quarantine%s",
        *(len(train), material.new_rows, judged, material.quarantined),
        " (reused: nothing changed)" if material.reused else "",
    )
    return material


def _gather_traffic(settings: Settings, known: Material, from_seq: int) -> Material:
    """New rows from the log: those with a clinic's delayed label judge models, the others are learned from."""
    log = TrafficLog.open(settings.database_url, settings.images)
    window = log.window(from_seq, settings.retrain.maximum_new_rows, lateness_s=0.0, now=time.time())
    rows: dict[str, dict[str, Rows]] = {"train": {}, "evaluation": {}}
    for site, own in window.groupby("site"):
        store = SiteStore(settings.folder / "sites" / str(site))
        seen = {
            *store.rows(known.train.get(str(site), ()), "train")["row_id"],
            *store.rows(known.evaluation.get(str(site), ()), "evaluation")["row_id"],
        }
        fresh = own[~own["image_hash"].isin(seen)]
        judged = fresh["label"].notna()
        for split, part in (("train", fresh[~judged]), ("evaluation", fresh[judged])):
            labels = [None if split == "train" else int(value) for value in part["label"]]
            rows[split][str(site)] = Rows([log.image(name) for name in part["image_hash"]], labels)
    source = f"traffic from {from_seq}"
    done = {split: _ingest_all(settings, rows[split], split, source, getattr(known, split)) for split in rows}
    new = {s: d.snapshots[len(known.train.get(s, ())) :] for s, d in done["train"].items() if d.new_rows}
    both = (*done["train"].values(), *done["evaluation"].values())
    material = Material(
        train=known.train | {site: d.snapshots for site, d in done["train"].items()},
        evaluation=known.evaluation | {site: d.snapshots for site, d in done["evaluation"].items()},
        new=new,
        fresh=_without({s: d.snapshots for s, d in done["evaluation"].items()}, known.evaluation),
        recent={s: (*known.recent.get(s, ()), *new.get(s, ())) for s in known.recent | new},
        labellings=known.labellings,
        parent=known.parent,
        new_rows=sum(d.new_rows for d in done["train"].values()),
        quarantined=sum(d.quarantined for d in both),
        reused=all(d.reused for d in both),
    )
    LOG.info(
        "ingest: %d new rows of traffic at %d sites to learn from, %d with delayed labels to be judged on%s",
        *(material.new_rows, len(new), sum(d.new_rows for d in done["evaluation"].values())),
        " (reused: nothing changed)" if material.reused else "",
    )
    return material


def _ingest_all(
    settings: Settings, rows: Mapping[str, Rows], split: str, source: str, parents: Mapping[str, tuple[str, ...]]
) -> dict[str, Ingested]:
    root = settings.folder / "sites"
    kind: Any = split
    return {
        site: ingest(SiteStore(root / site), settings.task, own, kind, source, parents.get(site, ()))
        for site, own in rows.items()
        if len(own)
    }


def frozen(snapshots: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {site: tuple(ids) for site, ids in snapshots.items()}


def _without(snapshots: Snapshots, others: Snapshots) -> dict[str, tuple[str, ...]]:
    found = {site: tuple(i for i in own if i not in others.get(site, ())) for site, own in snapshots.items()}
    return {site: own for site, own in found.items() if own}
