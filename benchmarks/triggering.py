"""Does the keyboard's triggering model do live what training predicted? And does a model of one's own do better?

    python benchmarks/triggering.py [--quick]

A model is trained on a simulated fleet of a million keyboards. A threshold is chosen from summed histograms of
devices' scores such that 80% of the clicks are kept; then it is tried on other devices on the five days that follow,
against a control group that shows everything (the comparison of Yang et al., 2018). --quick: a tenth of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flows.simulation import personal_table
from models.keyboard import Keyboard, build_model
from models.scores import scores_of
from pipelines.federated.work import LocalWork
from pipelines.simulate import personalise, simulate, simulation_of
from pipelines.triggering import choose_threshold, compared, go_live, survey
from pipelines.triggering_plot import picture

HERE = Path(__file__).parent
DEVICES = {True: 500, False: 4000}  # by --quick
OWN_STEPS = LocalWork(updates=5, batch_size=0, learning_rate=0.2)
"""How a device makes the model its own: a few steps; more overfit its handful of rows."""


def measure(quick: bool, image: Path | None = None) -> dict[str, Any]:
    devices = DEVICES[quick]
    simulation = simulation_of("keyboard", 10**6, 500, 20 if quick else 200, {})
    outcome = simulate(simulation, Path(os.environ.get("FEDLOOP_HOME", ".fedloop")))
    scores = scores_of(build_model(), outcome.state.parameters)
    fleet = Keyboard(simulation.population, simulation.seed)
    histogram = survey(scores, fleet, np.arange(devices))
    chosen = choose_threshold(histogram, keep_clicks=0.8)
    live = {}
    for day in range(1, 6):
        treated, control = (fleet.on(day).rows(np.arange(n * devices, (n + 1) * devices)) for n in (1, 2))
        live[f"day {day}"] = go_live(scores, chosen.score, treated, control)
    personal = personalise(outcome, devices, OWN_STEPS)
    console = Console(soft_wrap=True, width=120)
    console.print(compared(chosen, live))
    console.print(personal_table(personal))
    if image is not None:
        picture(histogram, chosen, live, image)
    return {
        "quality": dict(outcome.quality),
        "predicted": {"shown": chosen.shown, "kept": chosen.kept, "ctr": chosen.ctr, "base": chosen.base},
        "live": {day: {"shown": own.shown, "ctr": own.ctr, "base": own.base} for day, own in live.items()},
        "personal": personal.summary(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    found = measure(quick, None if quick else HERE.parent / "docs" / "images" / "triggering.png")
    path = HERE / "results" / f"triggering{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
