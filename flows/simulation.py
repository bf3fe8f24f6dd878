"""What `fedloop simulate` shows and writes of a simulation: progress, a table, figures as JSON, a picture."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from flows.console import CONSOLE, say, tell_progress
from flows.memory import PeakMemory
from pipelines.federated.cohort import DAY_S
from pipelines.federated.files import write_atomically
from pipelines.federated.personal import Personalisation
from pipelines.fleet_report import plot_fleet
from pipelines.simulate import Outcome, Simulation, folder_of, personalise
from pipelines.simulate import simulate as run


def simulate(
    simulation: Simulation, processes: int, personal: int, json_file: Path | None, plot: Path | None, fresh: bool
) -> dict[str, Any]:
    """Run it, show it, and return the figures that go into the JSON file."""
    tell_progress()
    home = Path(os.environ.get("FEDLOOP_HOME", ".fedloop"))
    if fresh:
        shutil.rmtree(folder_of(simulation, home), ignore_errors=True)
    say(
        f"simulate: {simulation.task}, {simulation.population:,} devices, {simulation.cohort:,} a round, "
        f"{simulation.rounds:,} rounds of {simulation.strategy}"
    )
    with PeakMemory(every_s=2.0) as memory:
        outcome = run(simulation, home, processes)
    figures = figures_of(outcome, memory.peak_mb)
    CONSOLE.print(table_of(outcome, figures))
    if personal:
        compared = personalise(outcome, personal)
        figures["personal"] = compared.summary()
        CONSOLE.print(personal_table(compared))
    if json_file is not None:
        write_atomically(json_file, json.dumps(figures, indent=2).encode())
        say(f"figures: {json_file}")
    if plot is not None and outcome.fleet is None:
        say("picture: there is none of a fleet without a clock; leave --always-available out")
    elif plot is not None and outcome.fleet is not None:
        plot_fleet([record.session for record in outcome.state.log], outcome.fleet, plot)
        say(f"picture: {plot}")
    return figures


def figures_of(outcome: Outcome, peak_mb: float) -> dict[str, Any]:
    """The simulation's figures, by the names that scripts read."""
    log = outcome.state.log
    abandoned = Counter(record.abandoned for record in log if record.abandoned is not None)
    return {
        "task": outcome.simulation.task,
        "population": outcome.simulation.population,
        "cohort": outcome.simulation.cohort,
        "strategy": outcome.simulation.strategy,
        "seconds": round(outcome.seconds, 3),
        "client_updates": sum(record.reports for record in log),
        "client_updates_per_s": round(outcome.client_updates_per_s, 1),
        "rounds": {"committed": len(log) - abandoned.total(), "abandoned": abandoned.total()},
        "abandoned_because": dict(abandoned.most_common(5)),
        "simulated_days": max((float(record.session.get("ended_s", 0.0)) for record in log), default=0.0) / DAY_S,
        "memory": {"peak_mb": round(peak_mb, 1)},
        "quality": dict(outcome.quality),
        "bytes": {way: sum(float(record.session.get(f"bytes_{way}", 0.0)) for record in log) for way in ("down", "up")},
        "kernel": outcome.kernel,
        "processes": outcome.processes,
        "threads": outcome.threads,
        "history": [list(point) for point in outcome.history],
    }


def table_of(outcome: Outcome, figures: Mapping[str, Any]) -> Table:
    title = f"{outcome.simulation.task}: what {outcome.simulation.rounds:,} rounds brought"
    table = Table("what", Column("figure", justify="right"), title=title, title_justify="left")
    rows = {
        "client updates": f"{figures['client_updates']:,}",
        "client updates/s (this call)": f"{figures['client_updates_per_s']:,.0f}",
        "seconds (this call)": f"{figures['seconds']:.1f}",
        "rounds committed": f"{figures['rounds']['committed']:,}",
        "rounds abandoned": f"{figures['rounds']['abandoned']:,}",
        "simulated days": f"{figures['simulated_days']:.1f}",
        "sent down / up": " / ".join(f"{figures['bytes'][way] / 1e6:,.0f} MB" for way in ("down", "up")),
        "peak memory": f"{figures['memory']['peak_mb']:,.0f} MB",
        "kernel": f"{outcome.kernel}, {outcome.processes} × {outcome.threads} (processes × threads)",
    }
    rows |= {f"quality: {name}": f"{value:.4f}" for name, value in outcome.quality.items()}
    for what, figure in rows.items():
        table.add_row(what, figure)
    for reason, count in figures["abandoned_because"].items():
        table.caption = f"{count} abandoned: {reason}"
    return table


def personal_table(compared: Personalisation) -> Table:
    """One model for all against models of their own, over the devices' held-out rows."""
    title = f"Is a device better off with a model of its own? ({len(compared.clients):,} devices)"
    columns = ("model", "accuracy", "log-loss", "worst tenth", "better at", "worse at")
    table = Table(*(Column(name, justify="right") for name in columns), title=title, title_justify="left")
    for kind, figures in compared.summary().items():
        table.add_row(
            kind, f"{figures['accuracy']:.4f}", f"{figures['log_loss']:.4f}", f"{figures['worst_decile']:.4f}",
            f"{figures['improved']:.0%}", f"{figures['worsened']:.0%}",
        )  # fmt: skip
    return table
