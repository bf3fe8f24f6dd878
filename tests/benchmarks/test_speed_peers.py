"""The speed benchmark compares like with like. Its folder is run in a process, as its file names are common ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(code: str) -> object:
    """What the code prints as JSON, run where the harness and the peers import from."""
    paths = f"import sys; sys.path[:0] = [{str(BENCHMARKS)!r}, {str(BENCHMARKS / 'peers')!r}]\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_models_have_the_weights_that_their_workloads_say() -> None:
    sizes = run(
        "import json\n"
        "from torch_models import WORKLOADS, flat_of, model_of\n"
        "from workloads import flat, initial\n"
        "pairs = [(w, flat_of(model_of(w)), flat(initial(w))) for w in WORKLOADS.values()]\n"
        "assert all((a == b).all() and len(a) == w.size for w, a, b in pairs)\n"
        "print(json.dumps({w.name: len(a) for w, a, _ in pairs}))"
    )
    assert isinstance(sizes, dict)
    assert (sizes["lr100"], sizes["mlp2nn"], sizes["cnn"]) == (65, 199_210, 1_663_370)


def test_our_round_and_the_plain_loop_give_float64s_aggregate(tmp_path: Path) -> None:
    apart = run(
        "import json, os, reference\n"
        "from pathlib import Path\n"
        "from worker import Variant, Worker\n"
        "from workloads import WORKLOADS\n"
        f"os.environ['FEDLOOP_PEERS'] = {str(tmp_path)!r}\n"
        "lr, path, apart = WORKLOADS['lr100'], Path(os.environ['FEDLOOP_PEERS']) / 'a.npy', {}\n"
        "for peer in ('fedloop', 'plain_loop'):\n"
        "    worker = Worker(Variant(peer, ''), lr.name, make=False)\n"
        "    worker.ready(120)\n"
        "    answer = worker.aggregate(path, lr.examples, 60)\n"
        "    orders = Path(answer['orders']) if 'orders' in answer else None\n"
        "    apart[peer] = reference.differences(lr, path, orders, lr.examples)[0]\n"
        "    assert worker.run(0.0, 60) > 0\n"
        "    worker.end()\n"
        "print(json.dumps(apart))"
    )
    assert isinstance(apart, dict)
    assert max(apart.values()) < 1e-7
