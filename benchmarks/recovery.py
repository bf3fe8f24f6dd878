"""How sure is the recovery? The loop's steps without servers, over several seeds: before, during and after the drift.

    python benchmarks/recovery.py [--task digits] [--seeds 21,22,23] [--quick]

A seed draws the sites, their cameras, the bought labels and the initial weights; pools and pictures stay the same, so
the spread over seeds understates the uncertainty. --quick takes one seed and a quarter of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

COLUMNS = ("before", "during", "adapted", "after", "oracle", "regained", "after_clean", "seconds")


def one_seed(task_name: str, seed: int, quick: bool) -> dict[str, float]:
    """The task's metric on the probe pool at every station of the loop."""
    from models.task import Rows
    from monitoring.traffic import Prediction, TrafficLog
    from pipelines import challenger, gather, loop
    from pipelines.figures import oracle_plan, predict
    from pipelines.oracle import train_oracle
    from pipelines.replay import captures
    from pipelines.report import quality_of
    from pipelines.settings import load_settings

    began = time.monotonic()
    training = {"rounds": 10, "adapt_rounds": 2, "retrain_rounds": 3} if quick else {}
    settings = load_settings(task_name, seed=seed, training=training)
    settings.apply_environment()
    task, data, plan = settings.task, settings.task.load(), gather.site_plan(settings)
    drift = next(iter(task.corruptions.values()))

    def shots(pool: Rows, count: int, tag: str, dark: bool) -> list:  # type: ignore[type-arg]
        return captures(
            task, pool, plan.cameras, plan.label_mix, count, seed,
            corruption=drift if dark else None, severity=0.7 if dark else 0.0, tag=tag, start_at=time.time() - 60,
        )  # fmt: skip

    def score(weights: dict, taken: list) -> float:  # type: ignore[type-arg]
        probabilities = predict(task, weights, (shot.png for shot in taken))
        answers = {"truth": [shot.label for shot in taken], "prediction": probabilities.argmax(axis=1)}
        return quality_of(pd.DataFrame(answers | {"probabilities": list(probabilities)}))[task.metric]

    def step(material: gather.Material, adapted: loop.Trained | None) -> tuple[loop.Trained, dict]:  # type: ignore[type-arg]
        labelled = loop.buy_labels(settings, material, adapted)
        trained = loop.fit(settings, material, labelled, adapted)
        found = challenger.judge_challenger(settings, material, trained)
        version = challenger.enter_registry(settings, material, labelled, trained, found)
        from pipelines import release

        release.promote(settings, version.number, "benchmark")
        return trained, loop.trained_weights(trained)

    clean, dark = shots(data.probe, 750, "clean", False), shots(data.probe, 750, "dark", True)
    first = gather.gather(settings)
    _, champion = step(first, None)
    traffic = shots(data.live, 750, "traffic", True)
    gather.deposit_truth(settings, traffic)
    log = TrafficLog.open(settings.database_url, settings.images)
    log.record(
        [
            Prediction(
                s.request_id, s.request_id, s.site, s.at, 1, s.png, gather.content_hash(s.png), 0, 1.0, [], [0.0] * 5
            )
            for s in traffic
        ]
    )
    second = gather.gather(settings, from_seq=1)
    adapted = loop.adapt(settings, second)
    assert adapted is not None
    _, recovered = step(second, adapted)
    oracle = train_oracle(
        task,
        gather.site_stores(settings),
        first.train,
        second.new,
        oracle_plan(settings),
        loop.initial_weights(settings),
    )
    during, best = score(champion, dark), score(oracle, dark)
    after = score(recovered, dark)
    return {
        "before": score(champion, clean),
        "during": during,
        "adapted": score(loop.trained_weights(adapted), dark),
        "after": after,
        "oracle": best,
        "regained": (after - during) / (best - during),
        "after_clean": score(recovered, clean),
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--seeds", default="21,22,23")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")][: 1 if arguments.quick else None]
    table = Table(title=f"{arguments.task}: low light 0.7, 10% of the labels", title_justify="left")
    for column in ("seed", *COLUMNS):
        table.add_column(column, justify="right")
    rows = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as home:
            os.environ["FEDLOOP_HOME"] = home
            rows[seed] = one_seed(arguments.task, seed, arguments.quick)
        table.add_row(
            str(seed), *(f"{rows[seed][c]:.3f}" if c != "seconds" else f"{rows[seed][c]:.0f}" for c in COLUMNS)
        )
    table.add_row("mean", *(f"{np.mean([row[c] for row in rows.values()]):.3f}" for c in COLUMNS))
    Console(width=110).print(table)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    name = f"recovery-{arguments.task}{'-quick' if arguments.quick else ''}.json"
    (results / name).write_text(json.dumps(rows, indent=2) + "\n")
    print(f"kept in {results / name}")


if __name__ == "__main__":
    main()
