"""Clusters of rows that stay: how much worse than k-means on the pooled rows, for how many bytes and seconds.

    python benchmarks/clustering.py [--quick]

Rows are dealt to 20 sites by a Dirichlet of .1 for each class. One-shot is k-FED (Dennis et al., 2021), iterative three
of Lloyd's rounds after it. inertia_ratio compares partitions of the whole rows, also where the sites clustered a
projection: the sum of squared distances to the partition's own means, over that of scikit-learn's KMeans. Every job and
answer goes through bytes, which are counted. --quick: digits alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from label_worlds import Recipe, World, build
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from weighed import Weighed

from models.embedding import nearest_centroid
from pipelines.federated.files import write_atomically
from pipelines.summarize import summarize

RESULTS = Path(__file__).parent / "results" / "clustering.json"
CLUSTERS = (10, 100, 300)
WAYS = {"one-shot": 0, "iterative": 3}


def inertia(features: NDArray[np.float32], part: NDArray[np.int64]) -> float:
    """Sum of squared distances [n, d] to the means of the parts [n]."""
    squares = float(np.einsum("nd,nd->", features, features, dtype=np.float64))
    sums = np.zeros((int(part.max()) + 1, features.shape[1]))
    np.add.at(sums, part, features)
    counts = np.bincount(part)
    return squares - float(((sums**2).sum(axis=1) / np.maximum(counts, 1)).sum())


def measure(world: World, seeds: range) -> dict[str, Any]:
    features = world.task.embed(world.images)
    found: dict[str, Any] = {"rows": len(features), "wide": features.shape[1], "sites": len(world.snapshots)}
    for clusters in CLUSTERS:
        began = time.monotonic(), time.process_time()
        central = KMeans(clusters, n_init=4 if len(features) < 5_000 else 1, random_state=0).fit(features)
        base = inertia(features, central.labels_.astype(np.int64))
        row: dict[str, Any] = {
            "central": {
                "seconds": round(time.monotonic() - began[0], 1),
                "cpu_s": round(time.process_time() - began[1], 1),
                "nmi_with_classes": round(float(normalized_mutual_info_score(world.labels, central.labels_)), 4),
            }
        }
        for way, rounds in WAYS.items():
            ratios, nmi, agreement, seconds, cpu, most = [], [], [], [], [], 0
            for seed in seeds:
                with world.engine() as engine:
                    weighed = Weighed(engine)
                    began = time.monotonic(), time.process_time()
                    summary = summarize(weighed, world.snapshots, clusters, rounds, seed)
                    seconds.append(time.monotonic() - began[0])
                    cpu.append(time.process_time() - began[1])
                    most = max(most, *weighed.bytes.values())
                rows = features if summary.basis is None else features @ summary.basis.astype(np.float32)
                part, _ = nearest_centroid(rows, summary.centroids)
                ratios.append(inertia(features, part) / base)
                nmi.append(normalized_mutual_info_score(world.labels, part))
                agreement.append(normalized_mutual_info_score(central.labels_, part))
            row[way] = {
                "inertia_ratio": round(float(np.mean(ratios)), 4),
                "worst_inertia_ratio": round(float(np.max(ratios)), 4),
                "nmi_with_classes": round(float(np.mean(nmi)), 4),
                "nmi_with_central": round(float(np.mean(agreement)), 4),
                "kb_per_site": round(most / 1000, 1),
                "seconds": round(float(np.mean(seconds)), 1),
                "cpu_s": round(float(np.mean(cpu)), 1),
                "seeds": len(seeds),
            }
        found[f"{clusters} clusters"] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    recipes = {"digits": Recipe("digits", 0, 20, 0.1, 0, 0.0), "mnist": Recipe("mnist", 0, 20, 0.1, 0, 0.0)}
    found: dict[str, Any] = {}
    for name in ("digits",) if quick else recipes:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(build(recipes[name], 0, Path(folder)), range(3))
    table = Table(title="k-means over 20 sites beside k-means on their pooled rows")
    for column in ("rows", "clusters", "way", "inertia / central", "NMI with central", "kB a site", "CPU s"):
        table.add_column(column)
    for name, own in found.items():
        for clusters in CLUSTERS:
            for way in WAYS:
                v = own[f"{clusters} clusters"][way]
                figures = (f"{v['inertia_ratio']:.3f}", f"{v['nmi_with_central']:.3f}", f"{v['kb_per_site']:.0f}")
                table.add_row(f"{name}, {own['rows']:,}", str(clusters), way, *figures, f"{v['cpu_s']:.1f}")
    Console().print(table)
    if not quick:
        write_atomically(RESULTS, json.dumps(found, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
