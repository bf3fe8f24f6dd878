"""The figures of the README: rehearse the loop, print the table, keep the summary with versions and the machine.

    python benchmarks/rehearsal.py [--task digits] [--quick]

--quick prints and keeps the summary of the last rehearsal in `out/` instead of making a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "mlflow", "prefect", "evidently", "scikit-learn", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--quick", action="store_true", help="keep the figures of the last rehearsal")
    arguments = parser.parse_args()
    verb = "report" if arguments.quick else "run"
    done = subprocess.run([sys.executable, "-m", "flows.cli", verb, arguments.task], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    summary = json.loads(Path("out", arguments.task, "summary.json").read_text())
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    kept = {"machine": machine, "versions": {name: version(name) for name in PACKAGES}, **summary}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"rehearsal-{arguments.task}.json"
    path.write_text(json.dumps(kept, indent=2) + "\n")
    print(f"kept in {path}")


if __name__ == "__main__":
    main()
