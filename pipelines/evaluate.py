"""Judging models from federated sums: overall, per site, per slice; and the gate with its written verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from models.errors import BadInput
from models.quality import QUALITY_COLUMNS
from models.task import Task
from monitoring.cases import short
from pipelines.cases import CaseReport
from pipelines.federated.engines.engine import Engine
from pipelines.federated.jobs import (
    DescribeAnswer,
    DescribeJob,
    EvaluateAnswer,
    EvaluateJob,
    Floats,
    ModelScores,
    Parameters,
)
from pipelines.federated.scoring import add_scores, expected_calibration_error, histogram_auc, macro_auc
from pipelines.settings import GateSettings
from pipelines.summarize import Snapshots, ask_all

QUARTILES = (0.25, 0.5, 0.75)
NAMED_CASES = 3
"""So many cases are named in a sentence; the others are counted."""
_EXACT = 1e-9
"""A loss of exactly the margin is within it: .65 - .60 is a little more than .05 in binary."""


@dataclass(frozen=True)
class Scores:
    rows: int
    accuracy: float
    auc: float
    ece: float

    def value(self, metric: str) -> float:
        return self.auc if metric == "auc" else self.accuracy


@dataclass(frozen=True)
class ModelReport:
    overall: Scores
    sites: dict[str, Scores]
    slices: dict[str, list[tuple[int, float]]]  # quality column → (rows, accuracy) from the lowest quartile up
    confidence: tuple[tuple[float, ...], ...] = ()  # [3, bins]: rows, summed confidence, correct rows


@dataclass(frozen=True)
class Verdict:
    """metric_passed: by the evaluation rows. regressed: customers' cases that the champion passes and this one fails.

    The two stay apart because a person may override the cases, and nobody the metric.
    """

    metric_passed: bool
    sentences: tuple[str, ...]
    figures: dict[str, float] = field(default_factory=dict)
    regressed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.metric_passed and not self.regressed

    def __str__(self) -> str:
        held = "held back by customers' cases: " if self.metric_passed else "held back: "
        return ("passed: " if self.passed else held) + "; ".join(self.sentences)


@dataclass(frozen=True)
class Fresh:
    """Both models' metric on a run's new rows, and the bound of the gain there."""

    rows: int
    challenger: float
    champion: float
    gain_lower_bound: float


@dataclass(frozen=True)
class Evaluation:
    """fresh: None without a champion, and where such rows are too few to say anything."""

    challenger: ModelReport
    champion: ModelReport | None
    verdict: Verdict
    cases: CaseReport | None = None
    fresh: Fresh | None = None


def evaluate(
    engine: Engine,
    task: Task,
    snapshots: Snapshots,
    challenger: Parameters,
    champion: Parameters | None,
    gate: GateSettings,
    seed: int,
    fresh: Snapshots | None = None,
) -> Evaluation:
    """Both models on the same evaluation rows of every site, compared by the gate.

    fresh: those of the snapshots that are of the traffic which the challenger was made for.

    Raises:
        BadInput: no site has a labelled evaluation row, or a site cannot answer.
    """
    sites = sorted(site for site, own in snapshots.items() if own)
    edges = _quartile_edges(engine, snapshots, sites)
    models = (challenger,) if champion is None else (challenger, champion)
    answers = ask_all(
        engine,
        {s: EvaluateJob(snapshots[s], models, edges, gate.bootstrap, seed) for s in sites},
        EvaluateAnswer,
    )
    if not any(answer.rows for answer in answers.values()):
        raise BadInput("no site has a labelled evaluation row, so no model can be judged; ingest some with labels")
    reports = [_report(answers, index) for index in range(len(models))]
    newer = None
    if champion is not None and (where := {site: own for site, own in (fresh or {}).items() if own}):
        asked = {s: EvaluateJob(own, models, edges, gate.bootstrap, seed) for s, own in where.items()}
        newer = _fresh(task.metric, ask_all(engine, asked, EvaluateAnswer), gate)
    verdict = judge(task, answers, reports, gate, newer)
    return Evaluation(reports[0], reports[1] if champion is not None else None, verdict, fresh=newer)


def _fresh(metric: str, answers: Mapping[str, EvaluateAnswer], gate: GateSettings) -> Fresh | None:
    new, old = (_report(answers, index).overall for index in (0, 1))
    values = new.value(metric), old.value(metric)
    if new.rows < gate.fresh_minimum_rows or not np.isfinite(values).all():
        return None
    return Fresh(new.rows, *values, _gain_lower_bound(answers, metric, gate.fresh_confidence))


def judge(
    task: Task,
    answers: Mapping[str, EvaluateAnswer],
    reports: list[ModelReport],
    gate: GateSettings,
    fresh: Fresh | None = None,
) -> Verdict:
    """The gate, a test of non-inferiority with two rules, and a third where there are new rows; who keeps all passes.

    Overall: the lower confidence bound of the gain (paired bootstrap over all sites' rows) is not below
    -overall_margin. So the burden of proof is the challenger's: where rows are few, or where the metric cannot be
    computed, it is held back. Per site: no site with site_minimum_rows loses more than site_margin, and surely
    anything: of some forty rows two decide about a margin of .05, and among five sites one would often veto by
    chance. A first model must beat no skill.

    New rows: there the challenger must be better, not only as good, because it was made for them and the rows of before
    outnumber them: a small loss now would hide in those. So would a gain, which is why the margin of all rows together
    is then the sites'.
    """
    metric, new = task.metric, reports[0]
    figures = {
        f"challenger_{metric}": new.overall.value(metric),
        "challenger_accuracy": new.overall.accuracy,
        "challenger_ece": new.overall.ece,
        "evaluation_rows": float(new.overall.rows),
    }
    if len(reports) == 1:
        floor = _no_skill(answers, metric)
        passed = new.overall.value(metric) > floor
        word = "beats" if passed else "does not beat"
        return Verdict(
            passed,
            (f"first model: {metric} {new.overall.value(metric):.3f} {word} the no-skill {floor:.3f}",),
            figures | {"no_skill": floor},
        )
    old = reports[1]
    gain = new.overall.value(metric) - old.overall.value(metric)
    lowest = _gain_lower_bound(answers, metric, gate.confidence)
    figures |= {f"champion_{metric}": old.overall.value(metric), "gain": gain, "gain_lower_bound": lowest}
    margin = gate.overall_margin if fresh is None else gate.site_margin
    overall = lowest >= -margin - _EXACT
    sentences = [
        f"{metric} {old.overall.value(metric):.3f} → {new.overall.value(metric):.3f} on the same {new.overall.rows} "
        f"rows; with {gate.confidence:.0%} confidence the gain is at least {lowest:+.3f} "
        f"({'within' if overall else 'beyond'} the margin of {margin})"
    ]
    losses = {site: old.sites[site].value(metric) - own.value(metric) for site, own in new.sites.items()}
    losses = {s: loss for s, loss in losses.items() if new.sites[s].rows >= gate.site_minimum_rows and loss > 0.0}
    vetoes = {
        site: loss
        for site, loss in losses.items()
        if loss > gate.site_margin + _EXACT and _loses_surely(answers[site], metric, gate.confidence)
    }
    fair, told = not vetoes, vetoes or losses
    worst_site = max(told, key=lambda site: told[site], default="")
    worst = told.get(worst_site, 0.0)
    figures["worst_site_loss"] = max(losses.values(), default=0.0)
    chance = ", which may be chance" if fair and worst > gate.site_margin + _EXACT else ""
    sentences.append(
        f"no site loses more than {gate.site_margin} "
        f"(most: {worst:.3f}{' at ' + worst_site if worst_site else ''}{chance})"
        if fair
        else f"{worst_site} loses {worst:.3f}, more than the margin of {gate.site_margin}"
    )
    better = True
    if fresh is not None:
        better = fresh.challenger > fresh.champion and fresh.gain_lower_bound >= -_EXACT
        sentences.append(
            f"on the {fresh.rows} new rows {metric} {fresh.champion:.3f} → {fresh.challenger:.3f}: "
            f"{'' if better else 'perhaps no gain, '}at least {fresh.gain_lower_bound:+.3f} with "
            f"{gate.fresh_confidence:.0%} confidence"
        )
        figures |= {f"fresh_{name}": float(value) for name, value in vars(fresh).items()}
    return Verdict(overall and fair and better, tuple(sentences), figures)


def judge_cases(verdict: Verdict, report: CaseReport) -> Verdict:
    """The verdict with what customers' cases add to it.

    A case that the champion passes and the challenger fails is a veto. One that both fail is reported, as is one that
    cannot be asked; so are all of a first model.
    """
    total, failed, lost = len(report.passed), int((~report.passed).sum()), report.regressed
    unasked = [(case.case_id, why) for case, why in report.questions.unasked]
    said = []
    if lost:
        said.append(f"{len(lost)} that the champion passes, this one fails: {name_cases(lost)}")
    if rest := failed - len(lost):
        said.append(f"{'both fail' if report.has_champion else 'it fails'} {rest}")
    if unasked:
        said.append(f"{len(unasked)} cannot be asked: {name_cases([name for name, _ in unasked])} ({unasked[0][1]})")
    sentence = ", ".join([f"{total - failed} of {total} customers' cases pass", *said])
    figures = {"cases": total, "cases_failed": failed, "cases_regressed": len(lost), "cases_unasked": len(unasked)}
    return replace(
        verdict,
        sentences=(*verdict.sentences, *([sentence] if total or unasked else [])),
        figures=verdict.figures | {name: float(value) for name, value in figures.items()},
        regressed=lost,
    )


def name_cases(case_ids: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(case_ids) - NAMED_CASES
    return " ".join(short(each) for each in case_ids[:NAMED_CASES]) + (f" and {more} more" if more > 0 else "")


def _quartile_edges(engine: Engine, snapshots: Snapshots, sites: list[str]) -> dict[str, tuple[float, ...]]:
    answers = ask_all(engine, {s: DescribeJob(snapshots[s], "evaluation") for s in sites}, DescribeAnswer)
    edges = {}
    for column in QUALITY_COLUMNS:
        histogram = np.sum([answer.histograms[column] for answer in answers.values()], axis=0)
        cumulative = np.cumsum(histogram)
        if cumulative[-1]:
            upper = (np.searchsorted(cumulative, [q * cumulative[-1] for q in QUARTILES]) + 1) / len(histogram)
            edges[column] = tuple(float(edge) for edge in upper)
    return edges


def _scores(rows: int, sums: ModelScores) -> Scores:
    accuracy = sums.correct / rows if rows else float("nan")
    return Scores(rows, accuracy, macro_auc(sums.scores), expected_calibration_error(sums.confidence_bins))


def _report(answers: Mapping[str, EvaluateAnswer], index: int) -> ModelReport:
    total = add_scores([answer.models[index] for answer in answers.values()])
    rows = sum(answer.rows for answer in answers.values())
    first = next(iter(answers.values()))
    slices = {}
    for column in first.slices:
        counts = np.sum([answer.slices[column] for answer in answers.values()], axis=0)
        slices[column] = [(int(row[0]), float(row[1 + index] / row[0]) if row[0] else float("nan")) for row in counts]
    by_site = {site: _scores(answer.rows, answer.models[index]) for site, answer in answers.items()}
    confidence = tuple(tuple(float(value) for value in sums) for sums in total.confidence_bins)
    return ModelReport(_scores(rows, total), by_site, slices, confidence)


def _replicates(answers: Mapping[str, EvaluateAnswer], metric: str, index: int) -> Floats:
    """[replicates]: the metric under each bootstrap draw of all sites' rows."""
    total = add_scores([answer.models[index] for answer in answers.values()])
    if metric == "auc":
        return histogram_auc(total.replicate_scores)
    rows = np.sum([answer.replicate_rows for answer in answers.values()], axis=0)
    return np.asarray(total.replicate_correct / np.maximum(rows, 1.0))


def _gains(answers: Mapping[str, EvaluateAnswer], metric: str) -> Floats:
    """The challenger's gain in each bootstrap draw in which it can be computed."""
    draws = _replicates(answers, metric, 0) - _replicates(answers, metric, 1)
    return np.asarray(draws[np.isfinite(draws)])


def _gain_lower_bound(answers: Mapping[str, EvaluateAnswer], metric: str, confidence: float) -> float:
    draws = _gains(answers, metric)
    return float(np.quantile(draws, 1.0 - confidence)) if len(draws) else float("nan")


def _loses_surely(answer: EvaluateAnswer, metric: str, confidence: float) -> bool:
    """Whether the upper bound of the site's gain is below 0; where no replicate can be computed, its loss stands."""
    draws = _gains({"site": answer}, metric)
    return not len(draws) or bool(np.quantile(draws, confidence) < 0.0)


def _no_skill(answers: Mapping[str, EvaluateAnswer], metric: str) -> float:
    """What a model without knowledge reaches: the share of the largest class, or an AUC of one half."""
    if metric == "auc":
        return 0.5
    scores = np.sum([answer.models[0].scores for answer in answers.values()], axis=0)
    own = scores[:, 1, :].sum(axis=1)
    return float(own.max() / max(own.sum(), 1))
