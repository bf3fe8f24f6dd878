"""How far does one machine go? A million phones, 5,000 a round, 5,000 rounds, with availability and drop-outs.

    python benchmarks/federated_scale.py [--quick]

Everything goes through `fedloop simulate` in processes of their own. The second part runs the same number of rounds
over 10^6 and over 10^8 devices: memory must not grow with the population. --quick takes 30 rounds of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FEDLOOP = Path(sys.executable).with_name("fedloop")


def simulate(population: int, cohort: int, rounds: int, home: Path, plot: Path | None = None) -> dict[str, Any]:
    """The figures of one simulation of the triggering model, begun anew."""
    figures = home / f"{population}-{rounds}.json"
    command = [FEDLOOP, "simulate", "keyboard", "--population", population, "--cohort", cohort, "--rounds", rounds]
    command += ["--json", figures, *(["--plot", plot] if plot else [])]
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, "FEDLOOP_HOME": str(home)})
    return json.loads(figures.read_text())


def measure(quick: bool, picture: Path | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        short = 30 if quick else 300
        long = simulate(10**6, 5000, short if quick else 5000, home, picture)
        small = simulate(10**6, 5000, short, home) if not quick else long
        large = simulate(10**8, 5000, short, home)
    return {
        "seconds": long["seconds"],
        "memory_mb": long["memory"]["peak_mb"],
        "days": long["simulated_days"],
        "long": long,
        "memory_growth": large["memory"]["peak_mb"] / small["memory"]["peak_mb"],
        "small": small,
        "large": large,
    }


def table(figures: dict[str, Any]) -> Table:
    table = Table(title="Fleets on this machine: the triggering model, 5,000 devices a round", title_justify="left")
    for column in ("devices", "rounds", "abandoned", "client updates", "seconds", "updates/s", "days", "MB", "AUC"):
        table.add_column(column, justify="right")
    for part in ("long", "small", "large"):
        run = figures[part]
        table.add_row(
            f"{run['population']:,}", f"{sum(run['rounds'].values()):,}", f"{run['rounds']['abandoned']:,}",
            f"{run['client_updates']:,}", f"{run['seconds']:.0f}", f"{run['client_updates_per_s']:,.0f}",
            f"{run['simulated_days']:.1f}", f"{run['memory']['peak_mb']:.0f}", f"{run['quality']['auc']:.4f}",
        )  # fmt: skip
    table.caption = f"memory at 10^8 devices: {figures['memory_growth']:.2f} × that at 10^6"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    figures = measure(parser.parse_args().quick)
    Console().print(table(figures))


if __name__ == "__main__":
    main()
