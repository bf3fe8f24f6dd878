"""The loop's steps on the digits, in a home of their own: once they make a champion, again they make nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from live_service import settings_in

from models.errors import BadInput, Missing
from pipelines import challenger, gather, loop, registry, release
from pipelines.evaluate import Evaluation
from pipelines.federated.checkpoints import latest
from pipelines.federated.store import stack_images
from pipelines.gather import Material, site_stores
from pipelines.loop import Labelled, Trained
from pipelines.settings import Settings


@dataclass
class Done:
    material: Material
    labelled: Labelled | None
    trained: Trained
    found: Evaluation
    version: registry.Version
    outcome: str


def run_steps(settings: Settings) -> Done:
    material = gather.gather(settings)
    adapted = loop.adapt(settings, material)
    labelled = loop.buy_labels(settings, material, adapted)
    trained = loop.fit(settings, material, labelled, adapted)
    found = challenger.judge_challenger(settings, material, trained)
    version = challenger.enter_registry(settings, material, labelled, trained, found)
    return Done(
        material,
        labelled,
        trained,
        found,
        version,
        challenger.decide(settings, material, version, found.verdict, "test"),
    )


@pytest.fixture
def tiny(settings: Settings) -> Settings:
    return in_small(settings)


def in_small(settings: Settings) -> Settings:
    """Two rounds."""
    training = settings.training.model_copy(update={"rounds": 2, "retrain_rounds": 1, "adapt_rounds": 1, "epochs": 3})
    gate = settings.gate.model_copy(update={"bootstrap": 20})
    return settings.model_copy(update={"training": training, "gate": gate})


def files_in(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_loop_makes_a_champion_and_all_again_makes_nothing(
    tiny: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first = run_steps(tiny)
    champion = registry.by_alias(tiny, "champion")
    assert champion is not None
    assert champion.number == first.version.number == 1
    assert first.found.verdict.passed
    assert "version 1 is champion (test)" in first.outcome

    tags = registry.version(tiny, 1).tags
    assert json.loads(tags["fedloop.snapshots.train"]) == {s: list(ids) for s, ids in first.material.train.items()}
    assert first.labelled is not None
    assert int(tags["fedloop.labels_bought"]) == first.labelled.bought <= 0.1 * first.labelled.rows
    assert tags["fedloop.key"] == first.trained.key
    assert tags["fedloop.gate_passed"] == "true"
    for store in site_stores(tiny).values():
        assert len(store.reference("1")) > 0

    assert_no_picture_is_registered(tiny, first.material)

    stores = files_in(tiny.folder / "sites")
    states = files_in(tiny.folder / "states")
    paid = {name: store.annotations() for name, store in site_stores(tiny).items()}
    release.retire(tiny, "a second rehearsal")
    with caplog.at_level(logging.INFO, logger="fedloop"):
        again = run_steps(tiny)

    assert again.material.reused
    assert again.labelled is not None
    assert again.labelled.reused
    assert again.trained.reused
    assert again.version.reused
    for step in ("ingest", "label", "train", "register"):
        assert any(line.startswith(f"{step}: ") and "reused" in line for line in caplog.messages), step
    assert [version.number for version in registry.versions(tiny)] == [1]
    assert again.version.number == 1
    assert replace(again.labelled, reused=False) == first.labelled
    assert {name: store.annotations() for name, store in site_stores(tiny).items()} == paid
    after = files_in(tiny.folder / "sites")
    assert after.keys() == stores.keys(), "a file appeared at a site"
    assert all(after[name] == stores[name] for name in stores if not name.endswith(".db"))
    assert files_in(tiny.folder / "states") == states
    champion = registry.by_alias(tiny, "champion")
    assert champion is not None
    assert champion.number == 1


def assert_no_picture_is_registered(settings: Settings, material: Material) -> None:
    secrets = set()
    for store in site_stores(settings).values():
        rows = store.rows(material.train[store.site], "train")
        secrets |= {image.tobytes() for image in stack_images(rows["png"], settings.task.input)}
    examples = list(settings.artifacts.rglob("input_example.json"))
    assert examples, "there is no example to look at"
    for path in examples:
        values = np.array(json.loads(path.read_text()), dtype=np.float64)
        images = np.rint(values * 255.0).astype(np.uint8)
        assert images.shape == (2, *settings.task.input.shape)
        assert not {image.tobytes() for image in images} & secrets


# -- one step at a time -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> tuple[Settings, Material, Labelled]:
    tiny = in_small(settings_in(tmp_path_factory.mktemp("labelled"), empty_registry))
    material = gather.gather(tiny)
    bought = loop.buy_labels(tiny, material)
    assert bought is not None
    return tiny, material, bought


def test_an_interrupted_training_is_taken_up_and_ends_the_same(labelled, caplog) -> None:  # type: ignore[no-untyped-def]
    settings, material, bought = labelled
    whole = loop.fit(settings, material, bought)
    expected = loop.trained_weights(whole)
    (Path(whole.folder) / "round-000002.safetensors").unlink()
    with pytest.raises(Missing, match=r"gone from .*, or damaged; train again"):
        loop.trained_weights(whole)
    with caplog.at_level(logging.INFO, logger="fedloop"):
        again = loop.fit(settings, material, bought)
    assert "train: an interrupted run is taken up after round 1 of 2" in caplog.messages
    assert again == whole
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loop.trained_weights(again).items())


def test_a_run_without_one_committed_round_is_an_error_and_is_not_reused(labelled) -> None:  # type: ignore[no-untyped-def]
    settings, material, bought = labelled
    settings = settings.model_copy(update={"seed": 5})  # weights of its own
    hidden = []
    for store in site_stores(settings).values():
        path = store.root / "labels" / f"{bought.id}.parquet"
        hidden.append((path, path.rename(path.with_suffix(".away"))))
    with pytest.raises(BadInput, match=r"all 2 rounds were abandoned, nothing was learned: .*has no labelling"):
        loop.fit(settings, material, bought)
    for path, away in hidden:
        away.rename(path)
    done = loop.fit(settings, material, bought)
    assert not done.reused
    assert done.abandoned == 0


def test_other_settings_are_another_run(labelled) -> None:  # type: ignore[no-untyped-def]
    settings, material, bought = labelled
    keys = {loop.fit(settings, material, bought).key}
    for change in ({"learning_rate": 0.01, "rounds": 1}, {"server": "adam", "rounds": 1}):
        other = settings.model_copy(update={"training": settings.training.model_copy(update=change)})
        done = loop.fit(other, material, bought)
        assert not done.reused
        keys.add(done.key)
    assert len(keys) == 3


def test_without_labels_there_is_nothing_to_learn_from(tiny: Settings) -> None:
    material = Material({}, {}, {}, {}, {}, (), None, 0, 0, False)
    assert loop.buy_labels(tiny, material) is None
    with pytest.raises(BadInput, match="nothing to learn from"):
        loop.fit(tiny, material, None)


def test_a_step_is_computed_once_for_one_key(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    assert loop.once(tmp_path, "count", "a", compute) == ({"value": 1}, False)
    assert loop.once(tmp_path, "count", "a", compute) == ({"value": 1}, True)
    assert loop.once(tmp_path, "count", "b", compute) == ({"value": 2}, False)
    assert latest(tmp_path) is None
