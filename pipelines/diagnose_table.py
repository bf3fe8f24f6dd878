"""Why does a model of a table err? The same causes as for pictures, with SHAP values for what it went by.

In go a fleet's task and its trained weights; out comes the report's page over the rows that its clients hold out. The
rows of such a fleet are public or invented and lie in one place, so the page may show them. Numbers have no light and
no sharpness: nothing of a table is called unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import BadInput
from models.explain import shap_values
from models.fleet_task import FleetTask, find_fleet_task
from models.population import Ragged
from pipelines.federated.causes import (
    CAUSES,
    MISLABELLED,
    UNSEEN,
    Causes,
    Federated,
    Learned,
    Trusted,
    Wrong,
    by_cause,
    distances,
)
from pipelines.federated.causes import causes as causes_of
from pipelines.federated.error_page import Page, Shift, ShownError, Table, class_table, render
from pipelines.federated.files import write_atomically
from pipelines.federated.jobs import Counts, Floats, Parameters
from pipelines.settings import DiagnosisSettings
from pipelines.simulate import simulate, simulation_of

CLIENTS_MOST = 50
"""Clients that are looked at, spread evenly over the fleet."""
SHIFTS, SUMMARY = 5, 15
"""Features that an error and that the summary shows."""


@dataclass(frozen=True)
class Rows:
    """Rows of several clients: x [n, features], y [n] of 0 and 1, cluster [n], and whose they are, [n]."""

    x: Floats
    y: Counts
    cluster: Counts
    client: Counts

    @classmethod
    def of(cls, block: Ragged, centroids: Floats) -> Rows:
        parts = [block.client(place) for place in range(len(block))]
        x = torch.cat([x for x, _ in parts]).double().numpy()
        y = torch.cat([y for _, y in parts]).numpy()
        return cls(x, y, distances(x, centroids).argmin(axis=1), np.repeat(np.arange(len(block)), block.counts))

    def counts(self, who: NDArray[np.bool_], clusters: int) -> Counts:
        """[k, 2]: how many rows of each cluster are of which class."""
        found = np.zeros((clusters, 2), dtype=np.int64)
        np.add.at(found, (self.cluster[who], self.y[who]), 1)
        return found


def diagnose_fleet(name: str, home: Path, settings: DiagnosisSettings) -> tuple[Page, Path]:
    """Train the fleet's task by its recipe, or take up what was trained, and write its error report under `home`.

    Raises:
        BadInput: the task's rows are no table for a linear model, or its clients hold no rows out.
    """
    task = find_fleet_task(name)
    simulation = simulation_of(name, None, None, int(task.recipe.get("rounds", 100)), {}, always_available=True)
    state = simulate(simulation, home, processes=1).state
    page = table_page(task, state.parameters, simulation.population, simulation.seed, settings)
    path = home / "reports" / f"errors-{task.name}.html"
    write_atomically(path, render(page).encode())
    return page, path


def table_page(task: FleetTask, parameters: Parameters, size: int, seed: int, settings: DiagnosisSettings) -> Page:
    """The report on what weights get wrong at the clients of a population."""
    from sklearn.cluster import KMeans

    population = task.population(size, seed)
    clients = np.unique(np.linspace(0, population.size - 1, min(CLIENTS_MOST, population.size)).astype(np.int64))
    training, held_out = population.rows(clients), population.held_out(clients)
    if training.x.ndim != 2 or not held_out.counts.sum():
        raise BadInput(f"task {task.name} has no tables at its clients, with rows held out, so there is no such report")
    model = task.build_model()
    model.load_state_dict(parameters)
    pooled = np.concatenate([training.client(place)[0].double().numpy() for place in range(len(clients))])
    clusters = min(settings.clusters, max(1, len(pooled) // 10))
    centroids = KMeans(clusters, n_init=1, random_state=seed).fit(pooled).cluster_centers_
    learned, judged = Rows.of(training, centroids), Rows.of(held_out, centroids)
    with torch.no_grad():
        odds = model(torch.from_numpy(judged.x).float())[:, 0].double().numpy()
    wrong = np.flatnonzero((odds > 0) != (judged.y == 1))
    found = [_of_client(learned, judged, wrong, place, centroids, settings.rate) for place in range(len(clients))]
    shifts, every = shap_values(model, pooled, judged.x[wrong]), shap_values(model, pooled, judged.x)
    names = task.features() or [f"feature {number}" for number in range(pooled.shape[1])]
    by_client, by_class, errors = {}, np.zeros((len(CAUSES), 2), dtype=np.int64), []
    for place, own in enumerate(found):
        mine = np.flatnonzero(judged.client[wrong] == place)
        by_client[f"client {clients[place]}"] = np.bincount(own.cause, minlength=len(CAUSES)).tolist()
        np.add.at(by_class, (own.cause, judged.y[wrong[mine]]), 1)
        for number, error in enumerate(mine):
            row, largest = wrong[error], np.argsort(-np.abs(shifts[error]))[:SHIFTS]
            errors.append(
                ShownError(
                    site=f"client {clients[place]}",
                    source="held-out row",
                    truth=str(judged.y[row]),
                    prediction=str(int(odds[row] > 0)),
                    confidence=float(1.0 / (1.0 + np.exp(-abs(odds[row])))),
                    cause=CAUSES[own.cause[number]],
                    why=_why(own, number),
                    shifts=tuple(Shift(names[j], float(shifts[error, j]), float(judged.x[row, j])) for j in largest),
                )
            )
    errors.sort(key=lambda error: -error.confidence)
    size_of = np.abs(every).mean(axis=0)
    notes = [f"{len(clients)} of {population.size:,} clients were looked at."]
    if len(errors) > settings.explained:
        notes.append(f"{settings.explained} of {len(errors)} errors are explained one by one, the surest first.")
    return Page(
        title=f"{task.name}: where it errs, and why",
        rows=len(judged.y),
        causes=by_cause(by_class),
        tables=(Table("by client", by_client), class_table(by_class, ("0", "1"))),
        notes=tuple(notes),
        errors=tuple(errors[: settings.explained]),
        shifts=tuple(Shift(names[j], float(size_of[j])) for j in np.argsort(-size_of)[:SUMMARY]),
    )


def _of_client(learned: Rows, judged: Rows, wrong: Counts, place: int, centroids: Floats, rate: float) -> Causes:
    """The causes of one client's errors. wrong: places of all clients' errors among the judged rows."""
    own, tried = learned.client == place, np.flatnonzero(judged.client == place)
    others = learned.x[~own]
    away = np.linalg.norm(others - centroids[learned.cluster[~own]], axis=1)
    radii = np.zeros(len(centroids))
    for cluster in np.unique(learned.cluster[~own]):
        radii[cluster] = np.quantile(away[learned.cluster[~own] == cluster], 1.0 - rate)
    everybody = np.ones(len(judged.y), dtype=bool)
    known = Federated(centroids, radii, learned.counts(~own, len(centroids)), judged.counts(everybody, len(centroids)))
    mine = wrong[judged.client[wrong] == place]
    asked = Wrong(
        judged.x[mine],
        np.zeros((len(mine), 1)),
        judged.y[mine],
        1 - judged.y[mine],
        judged.cluster[mine],
        np.searchsorted(tried, mine),
    )
    here = Learned(learned.x[own], learned.y[own], np.zeros((int(own.sum()), 1)), learned.cluster[own])
    return causes_of(here, Trusted(judged.x[tried], judged.y[tried]), known, asked, rate)


def _why(found: Causes, place: int) -> str:
    near = f"{found.agreeing[place]:.0%} of the nearest rows that it learned from have the true label"
    if found.cause[place] == UNSEEN:
        return f"{near}, and the nearest one that has it is as far as for {found.p_unseen[place]:.1%} of them."
    if found.cause[place] == MISLABELLED:
        return f"{near}, but what surrounds those says what is true (by {found.doubt[place]:+.1f} of 3 votes)."
    return f"{near}; one that has it is near (p = {found.p_unseen[place]:.2f})."
