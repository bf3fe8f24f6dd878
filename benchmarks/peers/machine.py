"""What this machine's arithmetic and memory can do at most, in the units in which the peers are judged.

python benchmarks/peers/machine.py [THREADS]     one process, as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIDE = 1024
STREAM_BYTES = 512 * 2**20


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rates(threads: int) -> dict[str, float]:
    """Of this process: float32 and bfloat16 products of 1024 x 1024 matrices in GF/s, reading memory in GB/s."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    stream = torch.ones(STREAM_BYTES // 4)
    work = 2 * SIDE**3 / 1e9
    return {
        "sgemm_gflops": work / _best(lambda: a @ b),
        "bf16_gflops": work / _best(lambda: half_a @ half_b),
        "read_gbytes": STREAM_BYTES / 1e9 / _best(stream.sum),
    }


def _best(call: Callable[[], object], seconds: float = 0.6) -> float:
    call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def measure() -> dict[str, dict[str, float]]:
    """One thread, all threads of one process, and as many processes with one thread each as there are cores."""
    many = cores()
    if many == 1:
        return {"1 thread": _together(1, [1])[0]}
    one, threads = _together(1, [1, many])
    return {"1 thread": one, f"{many} threads": threads, f"{many} processes": _together(many, [1])[0]}


def _together(processes: int, threads: list[int]) -> list[dict[str, float]]:
    """For each number of threads, one after the other: the sums over so many processes at once."""
    command = [sys.executable, str(Path(__file__)), *map(str, threads)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    answers = [json.loads(process.communicate()[0]) for process in started]
    return [{key: sum(answer[key] for answer in each) for key in each[0]} for each in zip(*answers, strict=True)]


if __name__ == "__main__":
    print(json.dumps([rates(int(threads)) for threads in sys.argv[1:] or ["1"]]))
