"""What the next challenger learns from: the champion's rows, the new traffic, and what one that was held back cost."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_loop import in_small, run_steps

from models.images import content_hash
from models.quality import quality
from monitoring.alarm import DRIFT
from monitoring.traffic import Label, Prediction, TrafficLog
from pipelines import challenger, gather, loop, registry
from pipelines.evaluate import Evaluation, Verdict
from pipelines.federated.store import stack_images
from pipelines.gather import Material, site_stores
from pipelines.reference import read_reference
from pipelines.replay import captures
from pipelines.settings import Settings


@pytest.fixture
def champion(settings: Settings) -> Settings:
    """Settings of a house with a champion."""
    tiny = in_small(settings).model_copy(update={"gate": settings.gate.model_copy(update={"bootstrap": 20})})
    assert run_steps(tiny).found.verdict.passed
    return tiny


def send(settings: Settings, tag: str, count: int = 60) -> int:
    """Traffic of version 1 in the dark, a third of it with labels; its first seq."""
    task, plan = settings.task, gather.site_plan(settings)
    dark = next(iter(task.corruptions.values()))
    shots = captures(
        task, task.load().live, count=count, cameras=plan.cameras, label_mix=plan.label_mix, seed=1, corruption=dark,
        severity=0.7, tag=tag,
    )  # fmt: skip
    seen = quality(stack_images((shot.png for shot in shots), task.input)).to_numpy()
    log = TrafficLog.open(settings.database_url, settings.images)
    first = log.last_seq() + 1
    log.record(
        [
            Prediction(
                shot.request_id, shot.request_id, shot.site, 1e6, 1, shot.png, content_hash(shot.png), 0, 0.5,
                [0.5] + [0.05] * 9, own.tolist(),
            )
            for shot, own in zip(shots, seen, strict=True)
        ]
    )  # fmt: skip
    log.label_all([Label(shot.request_id, shot.label, "clinic", 1e6) for shot in shots[::3]])
    log.close()
    gather.deposit_truth(settings, shots)
    return first


def challenge(settings: Settings, material: Material, passed: bool) -> tuple[registry.Version, Evaluation]:
    labelled = loop.buy_labels(settings, material)
    trained = loop.fit(settings, material, labelled)
    found = challenger.judge_challenger(settings, material, trained)
    found = replace(found, verdict=Verdict(passed, ("as the test has it",), found.verdict.figures))
    return challenger.enter_registry(settings, material, labelled, trained, found), found


def test_labels_of_a_challenger_that_was_held_back_are_learned_by_the_next_and_none_is_bought_again(
    champion: Settings,
) -> None:
    before = registry.version(champion, 1)
    first = gather.gather(champion, send(champion, "first"))
    assert first.new == first.recent
    assert sum(map(len, first.fresh.values())) > 0
    reference = {name: len(store.reference("1")) for name, store in site_stores(champion).items()}
    version, found = challenge(champion, first, passed=False)
    assert "stays challenger: held back" in challenger.decide(champion, first, version, found.verdict, "schedule")
    assert {name: len(rows) for name, rows in read_reference(champion, 1).sites.items()} == reference
    challenger.decide(champion, first, version, found.verdict, DRIFT)
    assert {name: len(store.reference("1")) for name, store in site_stores(champion).items()} == reference
    compared = read_reference(champion, 1).sites
    assert all(len(compared[name]) < reference[name] for name in first.new), "it is compared with what it sees now"
    assert all(compared[name]["brightness"].mean() < 0.2 for name in first.new)

    second = gather.gather(champion, send(champion, "second"))
    assert second.parent == before.number
    assert second.labellings == tuple(json.loads(version.tags["fedloop.labellings"]))
    assert second.labellings[: len(first.labellings)] == first.labellings
    assert len(second.labellings) == len(first.labellings) + 1
    assert not {i for own in second.new.values() for i in own} & {i for own in first.new.values() for i in own}
    assert {s: set(own) for s, own in second.recent.items()} == {
        s: {*first.new.get(s, ()), *second.new.get(s, ())} for s in first.new | second.new
    }
    assert set(second.known.items()) == set(first.train.items())
    assert not {i for own in second.fresh.values() for i in own} & {i for own in first.fresh.values() for i in own}


def test_a_run_that_died_before_its_release_is_repeated_and_makes_nothing_new(champion: Settings) -> None:
    start = send(champion, "first")
    material = gather.gather(champion, start)
    version, _ = challenge(champion, material, passed=True)
    again = gather.gather(champion, start)
    assert replace(again, reused=False) == replace(material, reused=False)
    repeated, _ = challenge(champion, again, passed=True)
    assert (repeated.number, repeated.reused) == (version.number, True)


def test_no_label_is_bought_where_adapting_alone_is_enough(champion: Settings) -> None:
    material = gather.gather(champion, send(champion, "first", count=150))
    adapted = loop.adapt(champion, material)
    assert adapted is not None
    strict = champion.model_copy(update={"labels": champion.labels.model_copy(update={"spared_within": 0.0})})
    assert challenger.spare_labels(strict, material, adapted) is None
    easy = champion.model_copy(update={"labels": champion.labels.model_copy(update={"spared_within": 1.0})})
    judged = challenger.judge_challenger(champion, material, adapted)
    spared = challenger.spare_labels(easy, material, adapted)
    assert (spared is not None) == judged.verdict.passed
    if spared is not None:
        version = challenger.enter_registry(champion, material, None, adapted, spared)
        assert json.loads(version.tags["fedloop.snapshots.train"]) == {s: list(i) for s, i in material.known.items()}
    assert challenger.spare_labels(easy, material, None) is None
