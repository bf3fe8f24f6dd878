"""Labels within a budget: a few rows stand for every global cluster, and their label spreads where they agree.

Rows near a centroid are typical of their cluster (Hacohen et al., "Active learning on a budget", ICML 2022), and a
label bought at one site speaks for the cluster at every site. A cluster whose bought rows disagree keeps those
labels and spreads none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.annotating import annotated
from pipelines.federated.engines.engine import Engine
from pipelines.federated.files import digest
from pipelines.federated.jobs import AnnotateJob, Counts, Parameters, SpreadAnswer, SpreadJob
from pipelines.settings import LabelSettings
from pipelines.summarize import DataSummary, Snapshots, ask_all, summarize


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
    agreeing: float  # share of the clusters whose bought rows agree


def label(
    engine: Engine,
    snapshots: Snapshots,
    rows: int,
    settings: LabelSettings,
    seed: int,
    encoder: Parameters | None = None,
) -> Labelling:
    """Buy labels for `budget_share` of the rows and spread them; the labels themselves stay at the sites.

    rows: how many training rows the snapshots hold, over all sites. encoder: weights whose features help to cluster.
    """
    budget = max(1, int(settings.budget_share * rows))
    clusters = max(1, budget // settings.per_cluster)
    summary = summarize(engine, snapshots, clusters, settings.lloyd_rounds, seed, encoder)
    near = summary.radius(settings.near_quantile)
    quota = share_out(summary.within(near), budget, settings.per_cluster, seed)
    sites = list(quota)
    people = settings.annotator == "desk"
    wants = settings.opinions if people else 1
    ask = {s: AnnotateJob(snapshots[s], summary.centroids, near, quota[s], seed, encoder, wants) for s in sites}
    said = annotated(engine, ask, settings.patience_s if people else 0.0)
    agreed = agreed_labels(said.histogram)
    name = digest(summary.id, settings.inputs(), budget, seed, said.histogram.tolist())
    reach = summary.radius(settings.spread_quantile)
    spread_jobs = {
        site: SpreadJob(name, snapshots[site], summary.centroids, reach, agreed, settings.spread_weight, encoder)
        for site in sites
    }
    spread = ask_all(engine, spread_jobs, SpreadAnswer)
    known = sum(answer.spread_known for answer in spread.values())
    correct = sum(answer.spread_correct for answer in spread.values())
    reached = sum(answer.spread for answer in spread.values())
    bought = int(said.histogram.sum())
    return Labelling(
        id=name,
        summary=summary,
        rows=rows,
        bought=bought,
        newly_bought=said.new,
        pending=said.pending,
        spread=reached,
        accuracy=correct / known if known else float("nan"),
        coverage=(bought + reached) / rows,
        agreeing=float((agreed >= 0).mean()),
    )


def agreed_labels(histogram: Counts) -> Counts:
    """[k]: the label that all annotated members of a cluster share, -1 where they differ or nobody was asked."""
    total = histogram.sum(axis=1)
    top = histogram.argmax(axis=1)
    unanimous = (total > 0) & (histogram.max(axis=1) == total)
    return np.where(unanimous, top, -1)


def share_out(near: dict[str, Counts], budget: int, per_cluster: int, seed: int) -> dict[str, Counts]:
    """Site → [k]: how many rows of each cluster it is to label.

    Every cluster gets `per_cluster`, what is left goes to the largest ones; the rows of a cluster are drawn at
    random among the near ones, wherever they live, so sites get their share by a hypergeometric draw.
    """
    sites = sorted(near)
    stock = np.stack([near[site] for site in sites])
    available = stock.sum(axis=0)
    wanted = np.minimum(per_cluster, available)
    order = np.argsort(-available, kind="stable")
    while wanted.sum() > budget:
        wanted[order[::-1][np.argmax(wanted[order[::-1]] > 0)]] -= 1
    while (spare := budget - int(wanted.sum())) > 0 and (wanted < available).any():
        wanted[[k for k in order if wanted[k] < available[k]][:spare]] += 1
    rng = np.random.default_rng([seed, 3])
    quota = np.zeros_like(stock)
    for cluster in range(stock.shape[1]):
        quota[:, cluster] = rng.multivariate_hypergeometric(stock[:, cluster], int(wanted[cluster]))
    return {site: quota[i] for i, site in enumerate(sites)}
