"""Every figure that is quoted of the federated engine, in one run and one file.

    python benchmarks/federated.py [--quick] [--parts speed flute rounds heart scale compression bfloat16]

Writes benchmarks/results/federated.json; a run of some parts leaves the others' figures there. --quick takes less than
a minute, shows that everything runs, and writes federated-quick.json instead: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
CONSOLE = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "fedloop")


def speed(quick: bool, workloads: list[str] | None = None) -> dict[str, Any]:
    """All workloads, or some: then what was measured of the others before stays."""
    import federated_speed

    some = workloads or (["lr100"] if quick else None)
    found = federated_speed.measure(some, 1 if quick else 7, 0.5 if quick else 2.0)
    CONSOLE.print(federated_speed.table(found))
    before = known(quick).get("speed", {}) if workloads else {}
    for part in ("workloads", "ratio"):
        found[part] = {**before.get(part, {}), **found[part]}
    if not quick:
        federated_speed.plot(found, IMAGES / "federated_speed.png")
    names = {
        "the fastest of them": "best_peer",
        "the fastest of them, ours in bfloat16": "bfloat16_best_peer",
        "FedJAX in copies that never merge": "fedjax_copies",
        "Flower": "flower",
        "FedJAX": "fedjax",
        "pfl-research": "pfl",
        "PyTorch loop, one thread": "loop",
    }
    ratio = {
        workload: {names[other]: times for other, times in own.items() if other in names}
        for workload, own in found["ratio"].items()
    }
    return {"ratio": ratio, "speed": found}


def flute(quick: bool) -> dict[str, Any]:
    import federated_speed

    seconds = federated_speed.flute()
    CONSOLE.print(
        f"FLUTE's setting (logistic regression on MNIST, 1,000 clients, 10 a round, 100 rounds): {seconds:.1f} s from"
        " process start; published: FLUTE 200 s, Flower 1,814 s (on another machine)"
    )
    return {"flute_s": seconds}


def rounds(quick: bool, settings: list[str] | None = None) -> dict[str, Any]:
    """A setting at a time, each kept as soon as it is there: together they take an hour."""
    import federated_rounds

    names = settings or (["2nn_iid"] if quick else [*federated_rounds.settings(), "by_writer"])
    found: dict[str, Any] = {}
    for name in names:
        found |= federated_rounds.measure(quick, [name], CONSOLE.print)
        earlier = known(quick).get("mnist", {})
        runs = {**earlier.get("runs", {}), **found}
        counts = {f"{each}_rounds": own["rounds"] for each, own in runs.items() if "rounds" in own}
        keep(quick, {"mnist": {**counts, "runs": runs}})
    CONSOLE.print(federated_rounds.table(found))
    return {}


def heart(quick: bool) -> dict[str, Any]:
    import federated_heart

    found = federated_heart.measure(quick)
    CONSOLE.print(federated_heart.table(found))
    return {"heart": {f"{name}_accuracy": own["accuracy"] for name, own in found.items()} | {"runs": found}}


def scale(quick: bool) -> dict[str, Any]:
    import federated_scale

    found = federated_scale.measure(quick, None if quick else IMAGES / "fleet.png")
    CONSOLE.print(federated_scale.table(found))
    return {"scale": found}


def compression(quick: bool) -> dict[str, Any]:
    import federated_compression

    found = federated_compression.measure(quick, ["keyboard"] if quick else None, CONSOLE.print)
    for table in federated_compression.tables(found):
        CONSOLE.print(table)
    if not quick:
        federated_compression.plot(found, IMAGES / "federated_compression.png")
    return {"compression": found}


def bfloat16(quick: bool) -> dict[str, Any]:
    """What computing in bfloat16 costs in accuracy: the CNN of McMahan et al. on MNIST, IID, rounds of one epoch."""
    import tempfile

    from pipelines.simulate import simulate, simulation_of

    found: dict[str, Any] = {}
    for half in (False, True):
        task = "models.mnist:TWO_NN_IID" if quick else "models.mnist:CNN_IID"
        simulation = simulation_of(
            task, 100, 10, 1 if quick else 10, {"epochs": 1}, always_available=True, bfloat16=half
        )
        with tempfile.TemporaryDirectory() as home:
            outcome = simulate(simulation, Path(home), evaluate_every=1 if quick else 2)
        found["bfloat16" if half else "float32"] = {
            "kernel": outcome.kernel, "seconds": outcome.seconds, "accuracy": [list(point) for point in outcome.history]
        }  # fmt: skip
        CONSOLE.print(f"{outcome.kernel}: accuracy by round {outcome.history}, {outcome.seconds:.0f} s")
    return {"bfloat16": found}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "heart": heart,
    "flute": flute,
    "speed": speed,
    "scale": scale,
    "compression": compression,
    "bfloat16": bfloat16,
    "rounds": rounds,
}


def results(quick: bool) -> Path:
    return RESULTS / f"federated{'-quick' if quick else ''}.json"


def known(quick: bool) -> dict[str, Any]:
    """What earlier runs found."""
    path = results(quick)
    return json.loads(path.read_text()) if path.exists() else {}


def keep(quick: bool, found: dict[str, Any]) -> None:
    results(quick).write_text(json.dumps(known(quick) | found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workloads", nargs="*", help="of the part speed: these alone")
    parser.add_argument("--settings", nargs="*", help="of the part rounds: these alone")
    arguments = parser.parse_args()
    some = {"speed": arguments.workloads, "rounds": arguments.settings}
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    for part in arguments.parts:
        CONSOLE.rule(part)
        began = time.monotonic()
        found = PARTS[part](arguments.quick, some[part]) if some.get(part) else PARTS[part](arguments.quick)
        took = known(arguments.quick).get("took_s", {}) | {part: round(time.monotonic() - began, 1)}
        keep(arguments.quick, {"machine": machine, **found, "took_s": took})
    CONSOLE.print(f"figures: {results(arguments.quick)}")


if __name__ == "__main__":
    main()
