"""Labels within a budget: a few rows stand for every global cluster, and their labels spread where that is safe.

Rows near a centroid are typical of their cluster (Hacohen et al., "Active learning on a budget", ICML 2022), there are
as many clusters as labels, and a label bought at one site speaks for its cluster at every site.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from pipelines.annotating import annotated
from pipelines.federated.choosing import STRATEGIES
from pipelines.federated.engines.engine import Engine
from pipelines.federated.files import digest
from pipelines.federated.jobs import AnnotateJob, Counts, Parameters, Singles, SpreadAnswer, SpreadJob
from pipelines.federated.spreading import agreed_labels
from pipelines.next_budget import NextBudget, in_proportion
from pipelines.settings import LabelSettings
from pipelines.summarize import DataSummary, Snapshots, ask_all, summarize

LOG = logging.getLogger("fedloop")
FIRST = "central"
"""The strategy of a first training where the one that was set needs a model."""


@dataclass(frozen=True)
class Labelling:
    """What was bought and what it spread to. accuracy: of the spread labels against the archive, else NaN."""

    id: str
    summary: DataSummary
    rows: int
    bought: int
    newly_bought: int
    pending: int  # rows that were to be bought and have no label yet
    spread: int
    accuracy: float
    coverage: float  # share of all rows that have a label, bought or spread
    agreeing: float  # share of the clusters with labels whose bought rows agree
    sites_off: int  # sites where spreading failed its check
    suspects: int  # bought labels that confident learning doubts


def label(
    engine: Engine,
    snapshots: Snapshots,
    rows: int,
    settings: LabelSettings,
    seed: int,
    model: Parameters | None = None,
    known: Snapshots | None = None,
    wanted: NextBudget | None = None,
    budget: int | None = None,
) -> Labelling:
    """Buy `budget` labels and spread them; the labels themselves stay at the sites.

    rows: how many training rows the snapshots hold, over all sites; without a budget, `budget_share` of them. model:
    weights whose features help to cluster and whose doubts may choose. known: earlier training rows, which say what is
    new. wanted: where the champion errs, which strategies that choose by cluster follow with `error_share` of the
    budget, times the unseen errors' share of all.

    Raises:
        BadInput: a site could not answer, or no site has rows enough to cluster.
    """
    name: str = settings.strategy
    if STRATEGIES[name].needs_model and model is None:
        LOG.info("label: there is no model yet that %s could ask, so the first rows are chosen by %s", name, FIRST)
        name = FIRST
    strategy = STRATEGIES[name]
    budget = settings.budget(rows, first=True) if budget is None else budget
    followed = int(settings.error_share * wanted.share * budget) if wanted and strategy.clustered else 0
    clusters = max(1, (budget - followed) // settings.per_cluster)
    summary = summarize(engine, snapshots, clusters, settings.lloyd_rounds, seed, model)
    before = summary
    if name == "drifted" and known and any(known.values()):
        before = summarize(engine, known, clusters, settings.lloyd_rounds, seed, model, basis=summary.basis)
    if strategy.clustered:
        closest = summary.closest if name == "central" else None
        more = in_proportion(followed, wanted.weights(summary)) if wanted else None
        quota = share_out(summary.counts, budget, settings.per_cluster, seed, closest, more)
    else:
        quota = share_out({s: c.sum(keepdims=True) for s, c in summary.counts.items()}, budget, budget, seed)
    sites, asked = list(quota), model if strategy.needs_model else None
    centroids, space = summary.centroids, summary.space
    people = settings.annotator == "desk"
    known_by = (before.centroids, before.radius, asked, settings.opinions if people else 1)
    jobs = {s: AnnotateJob(space, snapshots[s], centroids, name, quota[s], seed, *known_by) for s in sites}
    said = annotated(engine, jobs, settings.patience_s if people else 0.0)
    histogram, bought = said.histogram, said.bought
    labelling = digest(summary.id, settings.inputs(), budget, seed, histogram.tolist())
    how = (settings.spread, centroids, histogram, summary.radius)
    limits = (settings.spread_weight, settings.spread_confidence, settings.spread_check)
    spread = ask_all(engine, {s: SpreadJob(labelling, space, *how, *limits, seed) for s in sites}, SpreadAnswer)
    known_spread = sum(answer.spread_known for answer in spread.values())
    correct = sum(answer.spread_correct for answer in spread.values())
    reached = sum(answer.spread for answer in spread.values())
    labelled = histogram.sum(axis=1) > 0
    return Labelling(
        id=labelling,
        summary=summary,
        rows=rows,
        bought=bought,
        newly_bought=said.new,
        pending=said.pending,
        spread=reached,
        accuracy=correct / known_spread if known_spread else float("nan"),
        coverage=sum(answer.bought + answer.spread for answer in spread.values()) / rows,
        agreeing=float((agreed_labels(histogram)[labelled] >= 0).mean()) if labelled.any() else 0.0,
        sites_off=sum(answer.off for answer in spread.values()),
        suspects=sum(answer.suspects for answer in spread.values()),
    )


def share_out(
    stock: dict[str, Counts],
    budget: int,
    per_cluster: int,
    seed: int,
    closest: dict[str, Singles] | None = None,
    more: Counts | None = None,
) -> dict[str, Counts]:
    """Site → [k]: how many rows of each cluster it is to label, of those it has (stock: site → [k]).

    Every cluster gets `per_cluster` and what is asked for beyond that (more: [k]), what is left goes to the largest
    ones. A cluster's share goes one by one to the sites that have the rows closest to its centroid (closest: site →
    [k]); without that, as if its rows were drawn at random wherever they live, by a hypergeometric draw.
    """
    sites = sorted(stock)
    there = np.stack([stock[site] for site in sites])
    available = there.sum(axis=0)
    wanted = np.minimum(per_cluster if more is None else per_cluster + more, available)
    order = np.argsort(-available, kind="stable")
    while wanted.sum() > budget:
        wanted[order[::-1][np.argmax(wanted[order[::-1]] > 0)]] -= 1
    while (spare := budget - int(wanted.sum())) > 0 and (wanted < available).any():
        wanted[[k for k in order if wanted[k] < available[k]][:spare]] += 1
    rng = np.random.default_rng([seed, 3])
    quota = np.zeros_like(there)
    for cluster in range(there.shape[1]):
        if closest is None:
            quota[:, cluster] = rng.multivariate_hypergeometric(there[:, cluster], int(wanted[cluster]))
            continue
        turns = np.argsort([closest[site][cluster] for site in sites], kind="stable")
        for site in _in_turn(there[turns, cluster], int(wanted[cluster])):
            quota[turns[site], cluster] += 1
    return {site: quota[i] for i, site in enumerate(sites)}


def _in_turn(available: Counts, count: int) -> list[int]:
    """Which places give one, going round until `count` are given; a place gives what it has."""
    rounds = [(turn, place) for place, own in enumerate(available) for turn in range(min(int(own), count))]
    return [place for _, place in sorted(rounds)[:count]]
