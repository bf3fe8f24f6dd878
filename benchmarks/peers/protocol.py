"""How the harness talks to a peer's process: a command a line on its stdin, a JSON object a line on its stdout.

    → {"ready": true, "threads": 1, "processes": 1, "versions": {...}, "settings": "..."}
    aggregate PATH EXAMPLES → {"aggregate": PATH, "updates": n, "seconds": t}
                     one round from the initial weights over clients 0..cohort-1, with their first EXAMPLES rows;
                     the server's change of weights is saved, flat
    run SECONDS    → {"updates": n, "seconds": t}     whole rounds from the initial weights, for at least so long
    quit

`--share n` makes `run` work with the n-th part of the cohort, for n copies of a peer at once. A peer whose framework
shuffles by itself answers `aggregate` with "orders" too: the path of [cohort, EXAMPLES], the rows in the order in which
each client took them. What anything else prints goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from workloads import WORKLOADS, Workload


def start(variants: tuple[str, ...] = ()) -> tuple[Workload, argparse.Namespace, IO[str]]:
    """Reads the command line and takes stdout for the answers alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=[*WORKLOADS])
    parser.add_argument("--threads", type=int, default=1, help="per process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="compute in it; ours alone can")
    if variants:
        parser.add_argument("--variant", choices=variants, default=variants[0])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return WORKLOADS[arguments.workload], arguments, answers


def serve(
    workload: Workload,
    answers: IO[str],
    ready: dict[str, Any],
    aggregate: Callable[[int], np.ndarray | tuple[np.ndarray, np.ndarray]],
    run: Callable[[float], tuple[int, float]],
) -> None:
    """Says that it is ready, and answers until told to quit."""
    answers.write(json.dumps({"ready": True, **ready}) + "\n")
    for line in sys.stdin:
        command, *told = line.split()
        if command == "aggregate":
            path, examples = told[0], int(told[1])
            began = time.perf_counter()
            found = aggregate(examples)
            took = time.perf_counter() - began
            reply = {"aggregate": path, "updates": workload.cohort, "seconds": took}
            if isinstance(found, tuple):
                found, orders = found
                reply["orders"] = path.removesuffix(".npy") + "-orders.npy"
                np.save(reply["orders"], orders)
            np.save(path, found)
            answers.write(json.dumps(reply) + "\n")
        elif command == "run":
            updates, seconds = run(float(told[0]))
            answers.write(json.dumps({"updates": updates, "seconds": seconds}) + "\n")
        else:
            return


def timed(one_round: Callable[[], int], seconds: float) -> tuple[int, float]:
    """Client updates and seconds of as many whole rounds as fill `seconds`; `one_round` gives its client updates."""
    updates, began = 0, time.perf_counter()
    while True:
        updates += one_round()
        took = time.perf_counter() - began
        if took >= seconds:
            return updates, took


def planned(rounds: Callable[[int], float], cohort: int) -> Callable[[float], tuple[int, float]]:
    """`run` for a framework that must be told its number of rounds first; `rounds` gives the seconds they took."""
    each = math.inf

    def run(seconds: float) -> tuple[int, float]:
        nonlocal each
        done, took = 0, 0.0
        while done == 0 or took < seconds:
            count = max(1, math.ceil((seconds - took) / each)) if seconds > 0 else 1
            spent = rounds(count)
            done, took, each = done + count, took + spent, spent / count
        return done * cohort, took

    return run
