"""What the plain loops and the product are both given: sites of unequal size, partial cohorts, local work, batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plain_loop
import torch
from few_sites import FewSites, make_model, make_population
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.federated.layout import Layout
from pipelines.federated.steps import steps_of
from pipelines.federated.work import LocalWork

SEED = 11


@dataclass(frozen=True)
class Case:
    sites: FewSites
    work: LocalWork

    @property
    def start(self) -> NDArray[np.float64]:
        flat = Layout.of_model(self.sites.model).flatten(dict(self.sites.model.named_parameters()))
        return np.asarray(flat.double().numpy())

    def plain(self) -> plain_loop.Setting:
        """The same as numpy arrays; the order of a site's rows is the only thing that is taken from the product."""
        population, work = self.sites.population, self.work
        data = [(x.double().numpy(), y.numpy()) for x, y in map(self._rows, range(population.size))]

        def batches(number: int, site: int) -> list[NDArray[np.int64]]:
            alone = np.array([site])
            steps = steps_of(population.rows(alone), work, self.sites.seeds(SEED, number, alone))
            weight = torch.ones(steps.index.shape) if steps.weight is None else steps.weight
            places = steps.index[0] - int(population.starts[site])
            return [places[step][weight[0, step] > 0].numpy() for step in range(int(steps.steps[0]))]

        return plain_loop.Setting(data, self.sites.cohorts, batches, work.learning_rate, work.momentum)

    def _rows(self, site: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sites.population.rows(np.array([site])).client(0)


def case_of(counts: list[int], cohorts: list[list[int]], seed: int = 0, work: LocalWork | None = None) -> Case:
    return Case(
        FewSites(make_population(counts, seed), cohorts, make_model()),
        work or LocalWork(epochs=2, batch_size=4, learning_rate=0.1),
    )


@st.composite
def cases(draw: st.DrawFn, momentum: tuple[float, ...] = (0.0, 0.5)) -> Case:
    counts = draw(st.lists(st.integers(1, 14), min_size=3, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cohorts = [
        sorted(rng.choice(len(counts), rng.integers(1, len(counts) + 1), replace=False).tolist()) for _ in range(5)
    ]
    work = LocalWork(
        epochs=draw(st.integers(1, 3)),
        batch_size=draw(st.sampled_from([0, 3, 4])),
        learning_rate=draw(st.sampled_from([0.03, 0.1])),
        momentum=draw(st.sampled_from(momentum)),
    )
    return case_of(counts, cohorts, int(rng.integers(2**31)), work)
