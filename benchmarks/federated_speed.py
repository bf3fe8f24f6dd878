"""How fast is a simulated round? fedloop and its peers on the same models, data and mathematics, taking turns.

    python benchmarks/federated_speed.py [--quick] [--workload NAME ...] [--peers NAME ...]

Each peer runs in an environment of its own, which is made at the first call (`benchmarks/peers/`). Before anything is
timed, each one's aggregate must agree with a loop in float64. Then the peers take turns, a few seconds each, so that
whatever else the machine does hits all of them; the medians of their client updates a second are compared, and of a
peer's variants the best one counts. --quick, alone, takes two workloads, one variant of each peer whose environment
exists, and not Flower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))  # no package: the peers' environments import from it too

import machine  # noqa: E402
import reference  # noqa: E402
from environments import PeerMissing  # noqa: E402
from federated_speed_shown import FEDJAX, FLOWER, LOOP, OURS, PFL, TITLES, plot, table  # noqa: E402
from worker import PeerFailed, Variant, Worker  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

AGREES = 1e-5  # largest difference of a weight's change from float64
ALIKE = 0.1  # of the norm, over a whole epoch with kinks, where float32 leaves the path (see Workload.checked)
BESIDE = "bfloat16"  # of ours: other arithmetic, so shown beside the others and compared apart
COPIES = "copies"
LONG_S = 30.0  # a round this long is measured once, by the round that was checked
HOPELESS = 0.5  # a variant slower than this share of its peer's best is measured once
WARM_S = 5.0  # a shorter round is run once untimed, as sampling is not warm from the check
START_S, ROUND_S = 900.0, 900.0


def variants(workload: Workload, cores: int) -> list[Variant]:
    """In the order in which they take turns."""
    many, each = str(cores), ("--threads", "1")
    found = [
        Variant(OURS, "as it chooses"),
        Variant(LOOP, "one thread", each),
        Variant(PFL, "one process", ("--threads", many if len(workload.input) > 1 else "1")),
        Variant(FLOWER, f"{cores} actors", ("--processes", many)),
    ]
    if workload.name in ("cnn", "cifar"):
        found.insert(1, Variant(OURS, BESIDE, ("--bfloat16",)))
    # On convolutions, scan and vmap are several times slower than jit.
    forms = ("vmap", "jit", "scan") if len(workload.input) == 1 else ("jit",)
    found += [Variant(FEDJAX, form, ("--variant", form, "--threads", many)) for form in forms]
    if cores > 1:
        found += [
            Variant(LOOP, f"{cores} processes", (*each, "--processes", many)),
            Variant(PFL, f"{cores} processes", (*each, "--processes", many)),
        ]
        copies = [form for form in forms if form != "scan"]
        found += [Variant(FEDJAX, f"{form}, {cores} {COPIES}", (*each, "--variant", form), cores) for form in copies]
    return found


def measure(
    workloads: Sequence[str] | None = None,
    repetitions: int = 5,
    seconds: float = 2.0,
    peers: Sequence[str] = tuple(TITLES),
    quick: bool | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Some workloads (None: all), as plain values for JSON; `ratio` has the medians of how often faster ours is.

    quick: one variant of a peer, not Flower, and no environment is made; by default where there is one repetition.
    """
    quick = repetitions == 1 if quick is None else quick
    if quick:
        peers = [peer for peer in peers if peer != FLOWER]
    peaks = machine.measure()
    cores = machine.cores()
    found: dict[str, Any] = {"machine": {"cores": cores, **peaks}, "repetitions": repetitions, "workloads": {}}
    for name in workloads or WORKLOADS:
        workload = WORKLOADS[name]
        chosen = [variant for variant in variants(workload, cores) if variant.peer in peers]
        if quick:
            chosen = [next(variant for variant in chosen if variant.peer == peer) for peer in peers]
        measured = _workload(workload, chosen, repetitions, seconds, not quick, say)
        found["workloads"][name] = {
            "says": workload.says,
            "flops_per_update": workload.flops,
            "cohort": workload.cohort,
            "examples": workload.examples,
            "weights": workload.size,
            "variants": measured,
            **compare(workload, measured, peaks),
        }
    found["ratio"] = {
        name: {other: times["median"] for other, times in of["times"].items()}
        for name, of in found["workloads"].items()
        if "times" in of
    }
    return found


def _workload(
    workload: Workload,
    chosen: list[Variant],
    repetitions: int,
    seconds: float,
    make: bool,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """By variant's name: its rates and what it says of itself, or the reason why there are none."""
    workers: dict[str, Worker] = {}
    out: dict[str, dict[str, Any]] = {}

    def start(variant: Variant) -> None:
        out[variant.name] = {"peer": variant.peer, "variant": variant.says, "rates": []}
        try:
            workers[variant.name] = Worker(variant, workload.name, make)
        except PeerMissing as error:
            out[variant.name]["missing"] = str(error)
            say(f"{workload.name}: {variant.name} is left out: {error}")

    def first(name: str, step: Callable[[Workload, Worker], dict[str, Any]]) -> None:
        try:
            out[name] |= step(workload, workers[name])
        except PeerFailed as error:
            out[name]["failed"] = str(error)
            say(f"{workload.name}: {name} failed: {error}")
        if out[name]["rates"] or "failed" in out[name]:
            workers.pop(name).end()

    try:
        # Ours measures which kernel is fastest as it starts, so it starts when nobody else does.
        together = [variant for variant in chosen if variant.peer != OURS]
        for several in (together, *([variant] for variant in chosen if variant.peer == OURS)):
            for variant in several:
                start(variant)
            for name in [variant.name for variant in several if variant.name in workers]:
                first(name, _ready)
        for name in [*workers]:
            first(name, _check)
        _agree(workload, out)
        for repetition in range(repetitions):
            for name in [*workers]:
                try:
                    out[name]["rates"].append(workers[name].run(seconds, ROUND_S))
                except PeerFailed as error:
                    out[name]["failed"] = str(error)
                    workers.pop(name).end()
                    say(f"{workload.name}: {name} failed: {error}")
            if repetition == 0:
                for name in _hopeless(out):
                    if name in workers:
                        workers.pop(name).end()
            say(f"{workload.name}: repetition {repetition + 1} of {repetitions}")
    finally:
        for worker in workers.values():
            worker.end()
    out = {variant.name: out[variant.name] for variant in chosen}
    for of in out.values():
        if of["rates"]:
            of |= summary(of["rates"])
    return out


def _ready(workload: Workload, worker: Worker) -> dict[str, Any]:
    """What the worker says of itself."""
    ready = worker.ready(START_S)
    known = {key: ready[key] for key in ("threads", "processes", "versions", "settings")}
    known["processes"] *= worker.variant.copies
    return known


def _check(workload: Workload, worker: Worker) -> dict[str, Any]:
    """How far the worker's aggregates are off, and its rate if a second round would be long; warms up on the way."""
    known: dict[str, Any] = {}
    for examples in sorted({workload.checked, workload.examples}):
        with tempfile.TemporaryDirectory() as folder:
            answer = worker.aggregate(Path(folder) / "aggregate.npy", examples, ROUND_S)
            orders = Path(answer["orders"]) if "orders" in answer else None
            largest, norm = reference.differences(workload, Path(answer["aggregate"]), orders, examples)
        if examples == workload.checked:
            known["difference"] = largest
        known["relative_difference"] = norm
    if answer["seconds"] > LONG_S:
        known["rates"] = [answer["updates"] / answer["seconds"]]
    elif answer["seconds"] < WARM_S or worker.variant.copies > 1:
        worker.run(0.0, ROUND_S)
    return known


def _agree(workload: Workload, out: dict[str, dict[str, Any]]) -> None:
    measured = {name: of for name, of in out.items() if "difference" in of and of["variant"] != BESIDE}
    wrong = [
        f"{name} by {of['difference']:.1e}, in all by {of['relative_difference']:.1%}"
        for name, of in measured.items()
        if not (of["difference"] < AGREES and of["relative_difference"] < ALIKE)
    ]
    if wrong:
        raise AssertionError(f"{workload.name}: not the same mathematics as the loop: {'; '.join(wrong)}")


def _hopeless(out: dict[str, dict[str, Any]]) -> list[str]:
    best: dict[str, float] = {}
    judged = {name: of for name, of in out.items() if of["rates"] and of["variant"] != BESIDE}
    for of in judged.values():
        best[of["peer"]] = max(best.get(of["peer"], 0.0), of["rates"][0])
    return [name for name, of in judged.items() if of["rates"][0] < HOPELESS * best[of["peer"]]]


def summary(rates: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    return {"median": middle, "quartile_low": low, "quartile_high": high, "lowest": min(rates), "highest": max(rates)}


def compare(workload: Workload, measured: dict[str, dict[str, Any]], peaks: dict[str, Any]) -> dict[str, Any]:
    """The best variant of every peer; how many times faster ours is; and how much of our time is arithmetic.

    Copies of a peer that runs in one process merge nothing and so train no model together: they are compared apart.
    """
    best: dict[str, str] = {}
    copies: dict[str, str] = {}
    for name, of in measured.items():
        if "median" not in of or "failed" in of or of["variant"] == BESIDE:
            continue
        if of["variant"].endswith(COPIES):
            if of["median"] > measured.get(copies.get(of["peer"], ""), {"median": 0.0})["median"]:
                copies[of["peer"]] = name
        else:
            peer = of["peer"]
            if peer not in best or of["median"] > measured[best[peer]]["median"]:
                best[peer] = name
    found: dict[str, Any] = {"best": best}
    if OURS not in best:
        return found
    ours = measured[best[OURS]]
    others = {TITLES[peer]: name for peer, name in best.items() if peer != OURS}
    loop = next((name for name, of in measured.items() if of["peer"] == LOOP and of["variant"] == "one thread"), None)
    if loop and "median" in measured[loop]:
        others["PyTorch loop, one thread"] = loop
    found["times"] = {title: _times(ours, measured[name]) for title, name in others.items()}
    if others:
        fastest = max(others.values(), key=lambda name: measured[name]["median"])
        found["times"]["the fastest of them"] = {**_times(ours, measured[fastest]), "is": fastest}
        half = next((of for of in measured.values() if of["variant"] == BESIDE and "median" in of), None)
        if half is not None:
            found["times"]["the fastest of them, ours in bfloat16"] = {**_times(half, measured[fastest]), "is": fastest}
    for peer, name in copies.items():
        found["times"][f"{TITLES[peer]} in copies that never merge"] = _times(ours, measured[name])
    peak = max(of["sgemm_gflops"] for of in peaks.values())
    achieved = ours["median"] * workload.flops / 1e9
    found["arithmetic"] = {"gflops": achieved, "share_of_peak": achieved / peak, "peak_gflops": peak}
    return found


def _times(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Of the medians; lowest and highest over the repetitions, in each of which both took their turn."""
    pairs = [a / b for a, b in zip(ours["rates"], other["rates"], strict=False)]
    return {"median": ours["median"] / other["median"], "lowest": min(pairs), "highest": max(pairs)}


def flute(repetitions: int = 3) -> float:
    """Seconds of the setting in which FLUTE was published, from a process's start to its end; the median.

    Logistic regression on MNIST, 1,000 clients, 10 of them a round, 100 rounds. Every repetition is a first call: it
    measures its kernel and its arrangement, and nothing is remembered from the one before.
    """
    command = [
        str(Path(sys.executable).with_name("fedloop")), "simulate", "flute_setting:TASK", "--always-available",
        "--population", "1000", "--cohort", "10", "--rounds", "100",
    ]  # fmt: skip
    times = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "FEDLOOP_HOME": home, "PYTHONPATH": str(HERE / "peers")}
            began = time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workload", nargs="+", choices=[*WORKLOADS], default=[*WORKLOADS])
    parser.add_argument("--peers", nargs="+", choices=[*TITLES], default=[*TITLES])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, at least one round")
    arguments = parser.parse_args()
    if arguments.quick:
        found = measure(("lr100", "mlp2nn"), 3, 0.5, arguments.peers, quick=True)
    else:
        found = measure(arguments.workload, arguments.repetitions, arguments.seconds, arguments.peers)
        found["flute_s"] = flute()
    Console(width=118).print(table(found))
    ending = "-quick" if arguments.quick else ""
    results = HERE / "results" / f"federated_speed{ending}.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(found, indent=2) + "\n")
    print(f"kept in {results.relative_to(HERE.parent)}")
    if not arguments.quick:
        plot(found, HERE.parent / "docs" / "images" / "federated_speed.png")


if __name__ == "__main__":
    main()
