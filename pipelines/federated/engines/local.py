"""The embedded engine: sites in this process. Training sites are stacked and stepped together where that is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from pipelines.federated.engines.asking import collect_by_asking
from pipelines.federated.jobs import Answer, Failure, Job, TrainJob
from pipelines.federated.kernels.stacked import stacked
from pipelines.federated.layout import Layout
from pipelines.federated.local_work import join, local_updates
from pipelines.federated.plan import Context, Gathered, TrainingPlan, TrainingState
from pipelines.federated.rules import Seats
from pipelines.federated.site import Site
from pipelines.federated.steps import Steps

SMALL_MODEL = 20_000
"""Parameters up to which stacking wins on a CPU: beyond it arithmetic, not overhead, is the cost."""
CHUNK = 64
"""Sites stepped together, which bounds the memory of the stacked weights."""


class LocalEngine:
    """Sites by name, answered one after the other or stacked.

    stacked: None decides by the model's size; True and False insist.
    """

    def __init__(self, sites: Mapping[str, Site], stacked: bool | None = None) -> None:
        self.sites = dict(sites)
        self.stacked = stacked

    @property
    def population(self) -> list[str]:
        return sorted(self.sites)

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
        return collect_by_asking(self, plan, state)

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        training = {name: job for name, job in jobs.items() if isinstance(job, TrainJob)}
        if len(training) == len(jobs) > 1 and self._stacks(training):
            yield from self._train_stacked(training)
            return
        for name, job in jobs.items():
            yield name, self.sites[name].answer(job)

    def _stacks(self, jobs: Mapping[str, TrainJob]) -> bool:
        first = next(iter(jobs.values()))
        shared = all(job.parameters is first.parameters and job.work == first.work for job in jobs.values())
        size = sum(tensor.numel() for tensor in first.parameters.values())
        # Sites with rows of different number have batches of different size when a batch is all of them.
        one_size = first.work.batch_size > 0
        return shared and one_size and (size <= SMALL_MODEL if self.stacked is None else self.stacked)

    def _train_stacked(self, jobs: Mapping[str, TrainJob]) -> Iterator[tuple[str, Answer | Failure]]:
        names = list(jobs)
        first = jobs[names[0]]
        layout = Layout.of(first.parameters)
        kernel = stacked(self.sites[names[0]].task.build_model(), layout)
        start = layout.flatten(first.parameters)
        for begin in range(0, len(names), CHUNK):
            drawn: dict[str, tuple[Steps, Seats]] = {}
            answers: dict[str, Answer | Failure] = {}
            for name in names[begin : begin + CHUNK]:
                try:
                    drawn[name] = self.sites[name].draw_steps(jobs[name]), self.sites[name].seat(jobs[name], layout)
                except Exception as error:  # as in Site.answer: one site's failure is a value
                    answers[name] = self.sites[name].failure(error)
            if drawn:
                steps = join([own for own, _ in drawn.values()])
                seats = _together([seat for _, seat in drawn.values()])
                sent, losses = local_updates(
                    kernel, steps, start, first.shared, first.work, first.rule, first.stages, seats
                )
                for place, (name, (own, seat)) in enumerate(drawn.items()):
                    part = slice(place, place + 1)
                    seat.memory = {key: kept[part] for key, kept in seats.memory.items()}
                    try:
                        answers[name] = self.sites[name].report(jobs[name], own, sent[part], losses[part], seat)
                    except Exception as error:  # it could not keep what the rule needs: a full disk
                        answers[name] = self.sites[name].failure(error)
            for name in names[begin : begin + CHUNK]:
                yield name, answers[name]


def _together(seats: list[Seats]) -> Seats:
    memory = {name: torch.cat([seat.memory[name] for seat in seats]) for name in seats[0].memory}
    return Seats(seats[0].layout, np.concatenate([seat.seeds for seat in seats]), memory)
