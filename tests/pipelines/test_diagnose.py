"""From a version to the causes of its errors: counts for the federation, pictures where they may be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_case_gate import submit
from test_loop import in_small, run_steps
from tiny_sites import LABELLING, TINY, initial, make_engine, make_site, pictures

from models.errors import Missing
from models.images import encode_png
from monitoring.cases import findings, live
from monitoring.traffic import Prediction, TrafficLog
from pipelines import diagnose, loop, registry
from pipelines.cases import failing_cases, opened, states
from pipelines.diagnose import Diagnosis, Learned
from pipelines.federated.causes import CAUSES
from pipelines.federated.doubts import doubts
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Case, Parameters
from pipelines.federated.site import Site
from pipelines.gather import site_stores
from pipelines.serving_model import load_version
from pipelines.settings import DiagnosisSettings, Settings
from pipelines.tracking import connection

FEW = DiagnosisSettings(clusters=6, explained=3)


def trained_on(engine: LocalEngine, snapshots: dict[str, tuple[str, ...]]) -> Parameters:
    from pipelines.federated.plan import TrainingPlan
    from pipelines.federated.strategy import Strategy
    from pipelines.federated.training import begin, run_round
    from pipelines.federated.work import LocalWork

    plan = TrainingPlan((LABELLING,), snapshots, 3, 0, Strategy(LocalWork(epochs=3, batch_size=5, learning_rate=0.1)))
    state = begin(plan, initial())
    for _ in range(plan.rounds):
        state = run_round(plan, state, engine)
    return state.parameters


def federation(root: Path, without: int | None = None, rows: int = 36) -> tuple[LocalEngine, Learned]:
    """Three sites of so many rows to learn from and 12 to be judged on; `without`: a class without any label."""
    sites: dict[str, Site] = {}
    train, evaluation = {}, {}
    for seed, name in enumerate(("a", "b", "c")):
        sites[name], train[name], evaluation[name] = make_site(root, name, rows, 12, seed)
        table = sites[name].store.labels(LABELLING)
        sites[name].store.write_labels(LABELLING, table[table["label"] != without] if without is not None else table)
    return LocalEngine(sites), Learned(train, evaluation, (LABELLING,))


def diagnosed(engine: LocalEngine, learned: Learned, settings: DiagnosisSettings = FEW, **more: object) -> Diagnosis:
    parameters = trained_on(engine, dict(learned.train))
    return diagnose.diagnose(engine, learned, parameters, 1, settings, 0, **more)  # type: ignore[arg-type]


def test_a_class_that_nobody_learned_is_unseen_at_every_site(tmp_path: Path) -> None:
    found = diagnosed(*federation(tmp_path, without=2))
    assert found.rows == 36
    assert found.causes == {"unseen": 12, "mislabelled": 0, "mislearned": 0, "unreadable": 0}
    assert found.classes[0].tolist() == [0, 0, 12]
    assert found.clusters.sum() == 12
    assert found.sentence == "12 errors in 36 labelled rows: 12 unseen. Label rows like these."


def test_a_class_that_another_site_learned_is_not_unseen(tmp_path: Path) -> None:
    engine, learned = federation(tmp_path)
    store = engine.sites["a"].store
    table = store.labels(LABELLING)
    store.write_labels(LABELLING, table[table["label"] != 2])
    blind = initial(1)  # untrained, so that there is something to explain
    found = diagnose.diagnose(engine, learned, blind, 1, FEW, 0)
    errors = found.answers["a"].classes[:, 2]
    assert errors.sum() > 0
    assert errors[CAUSES.index("unseen")] == 0


def test_cases_are_diagnosed_beside_evaluation_rows_and_none_of_them_twice(tmp_path: Path) -> None:
    engine, learned = federation(tmp_path)
    dark = np.zeros((1, 8, 8, 1), dtype=np.uint8) + np.arange(8, dtype=np.uint8)[None, :, None, None]
    rows = engine.sites["a"].store.rows(learned.evaluation["a"], "evaluation")
    known = Case(rows["png"].iloc[0], 0, 1, 0.9)
    nowhere = Case(encode_png(np.flip(dark[0], axis=1)), 0, 1, 0.9, "case")
    cases = {
        "a": [
            Case(encode_png(dark[0]), 0, 1, 0.9, "case"),
            Case(encode_png(pictures(np.zeros(1, dtype=np.int64), 77)[0]), 0, 0, 0.9),
            Case(b"no picture", 0, 1, 0.9),
            known,
        ],
        "": [nowhere],
    }
    found = diagnosed(engine, learned, cases=cases)
    assert found.causes["unreadable"] == 2
    unreadable = CAUSES.index("unreadable")
    asked = {site: answer.cases.tolist() for site, answer in found.answers.items()}
    assert asked == {"a": [unreadable, unreadable, -1, -1, -1], "b": [], "c": []}
    assert found.told == [(nowhere, "unreadable"), (cases["a"][0], "unreadable")]
    assert found.rows == 38, "right answers, unreadable bytes and rows that are judged anyway are no cases"


def test_a_case_that_is_an_evaluation_row_has_the_cause_of_that_rows_error(tmp_path: Path) -> None:
    engine, learned = federation(tmp_path, without=2)
    store = engine.sites["a"].store
    rows = store.rows(learned.evaluation["a"], "evaluation")
    truth = store.truth(rows["row_id"]).to_numpy(dtype=int)
    same = Case(rows["png"].iloc[int(np.flatnonzero(truth == 2)[0])], 2, 1, 0.9, "case")
    found = diagnosed(engine, learned, cases={"a": [same, replace(same, label=0)]})
    assert found.told == [(same, "unseen")]
    assert found.causes["unseen"] == found.rows - 24 == 12, "and is one error"


def test_pictures_and_row_ids_stay_at_the_site(tmp_path: Path) -> None:
    engine, learned = federation(tmp_path, without=2)
    found = diagnosed(engine, learned)
    for site in engine.sites.values():
        html = site.store.report("1").read_text()
        assert html.count("data:image/png") >= 3
        assert html.count('class="error unseen"') == FEW.explained
        assert "3 of 4 errors are explained" in html
    answers = repr(list(found.answers.values()))
    rows = engine.sites["a"].store.rows(learned.train["a"], "train")
    assert not any(row in answers for row in rows["row_id"])
    federated = diagnose.page(TINY, "tiny", found)
    assert federated.errors == ()


def test_labels_that_were_turned_are_the_suspects(tmp_path: Path) -> None:
    engine, learned = federation(tmp_path, rows=90)
    turned = {}
    for name, site in engine.sites.items():
        table = site.store.labels(LABELLING)
        hit = (table["label"] == 1) & (table.groupby("label").cumcount() % 4 == 0)
        site.store.write_labels(LABELLING, table.assign(label=np.where(hit, 0, table["label"])))
        turned[name] = set(table.loc[hit, "row_id"])
    found = diagnose.diagnose(engine, learned, initial(1), 1, FEW.model_copy(update={"clusters": 24}), 0)
    suspected = {name: {each.row_id for each in doubts(site.store)} for name, site in engine.sites.items()}
    caught = sum(len(suspected[name] & turned[name]) for name in turned)
    assert caught > 0.5 * sum(map(len, turned.values()))
    assert caught > 0.8 * sum(map(len, suspected.values()))
    assert found.suspects.sum() == sum(map(len, suspected.values()))


def test_a_site_that_learned_nothing_is_answered_for(tmp_path: Path) -> None:
    engine, learned = federation(tmp_path)
    store = engine.sites["b"].store
    store.write_labels(LABELLING, store.labels(LABELLING).head(0))
    found = diagnose.diagnose(engine, replace(learned, evaluation={}), initial(), 1, FEW, 0)
    assert found.rows == 0
    assert found.sentence == "no errors in 0 labelled rows"


# -- a registered version ---------------------------------------------------------------------------------------


def test_a_version_is_diagnosed_logged_and_tagged(settings: Settings) -> None:
    tiny = in_small(settings).model_copy(update={"diagnosis": FEW})
    with pytest.raises(Missing, match="has no version to diagnose"):
        diagnose.diagnose_version(tiny)
    done = run_steps(tiny)
    site = next(iter(site_stores(tiny)))
    log_wrong_answer(tiny, site)
    expected = submit(tiny, dict.fromkeys(range(6), 0))
    failing = {case.case_id for case, _ in failing_cases(tiny, loop.weights_of(tiny, 1))}
    assert failing

    found, path = diagnose.diagnose_version(tiny)
    assert len(found.told) == len(failing) + 1
    with opened(tiny) as log:
        kept = {each.case_id: each.cause for each in findings(log.engine, 1)}
        shown = states(tiny.task, log, live(log.engine), load_version(tiny, registry.version(tiny, 1)).predict, 1)
    assert kept.keys() == failing <= set(expected.values())
    assert set(kept.values()) <= set(CAUSES)
    assert {each.case.case_id: each.cause for each in shown if each.state == "failed"} == kept
    sources = json.loads(site_stores(tiny)[site].report("1", "json").read_text())
    assert found.rows == done.found.challenger.overall.rows + len(failing) + 1
    errors = done.found.challenger.overall.rows * (1 - done.found.challenger.overall.accuracy)
    assert sum(found.causes.values()) == round(errors) + len(failing) + 1
    assert sources
    assert "data:image" not in path.read_text(), "a live report shows no picture"
    assert "The pictures stay at the sites" in path.read_text()

    version = registry.version(tiny, 1)
    assert version.tags["fedloop.errors"] == found.sentence
    assert version.run_id is not None
    with connection(tiny) as client:
        assert [file.path for file in client.list_artifacts(version.run_id, "errors")] == ["errors/errors-1.html"]
    assert diagnose.errors_told(tiny, 1).startswith(f"Version 1: {found.sentence} The report: http")
    assert version.run_id in diagnose.errors_told(tiny, 1)
    assert diagnose.errors_told(tiny, 2) == ""

    ours = tiny.model_copy(update={"diagnosis": FEW.model_copy(update={"pictures": True})})
    _, page = diagnose.diagnose_version(ours)
    assert "data:image" in page.read_text()


def log_wrong_answer(settings: Settings, site: str) -> None:
    """A picture that the service got wrong and a clinic has labelled since."""
    png = encode_png(np.random.default_rng(3).integers(0, 255, size=settings.task.input.shape).astype(np.uint8))
    name = "ab" * 16
    answer = Prediction("p1", None, site, 1.0, 1, png, name, 3, 0.8, [0.1] * 10, [0.5] * 5)
    log = TrafficLog.open(settings.database_url, settings.images)
    log.record([answer, replace(answer, prediction_id="p2", model_version=2)])
    log.label("p1", 4, "clinic", 2.0)
    log.label("p2", 4, "clinic", 2.0)
    log.close()


def test_what_cannot_be_diagnosed_is_said_and_ends_no_retraining(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert diagnose.tell_causes(settings, 7).startswith("not diagnosed: ")
    assert "no causes were found" in caplog.text


def test_an_engine_over_one_site_has_no_elsewhere(tmp_path: Path) -> None:
    engine, train = make_engine(tmp_path, {"a": 12})
    found = diagnose.diagnose(engine, Learned(train, {}, (LABELLING,)), initial(), 1, FEW, 0)
    assert pd.Series(found.causes).sum() == 0
