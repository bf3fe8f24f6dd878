"""The embedded engine: sites in this process. Training sites are stacked and stepped together where that is allowed.

An engine has one method, `ask`; everything above it does not know where the sites are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from pipelines.federated.jobs import Answer, Failure, Job, TrainAnswer, TrainJob
from pipelines.federated.local_work import train_stacked
from pipelines.federated.site import Site
from pipelines.federated.stages import on_site

SMALL_MODEL = 20_000
"""Parameters up to which stacking wins on a CPU: beyond it arithmetic, not overhead, is the cost."""
CHUNK = 64
"""Sites stepped together, which bounds the memory of the stacked weights."""


class Engine(Protocol):
    @property
    def population(self) -> list[str]: ...

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        """Each site's answer to its job, in the order of `jobs`."""
        ...


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
        return shared and (size <= SMALL_MODEL if self.stacked is None else self.stacked)

    def _train_stacked(self, jobs: Mapping[str, TrainJob]) -> Iterator[tuple[str, Answer | Failure]]:
        names = list(jobs)
        for start in range(0, len(names), CHUNK):
            drawn, failed = {}, {}
            for name in names[start : start + CHUNK]:
                try:
                    drawn[name] = self.sites[name].draw_batches(jobs[name])
                except Exception as error:  # as in Site.answer: one site's failure is a value
                    failed[name] = self.sites[name].failure(error)
            able = [name for name, (steps, _) in drawn.items() if steps]
            results = {}
            if able:
                job, model = jobs[able[0]], self.sites[able[0]].task.build_model()
                steps = [drawn[name][0] for name in able]
                results = dict(zip(able, train_stacked(model, job.parameters, steps, job.work), strict=True))
            for name in names[start : start + CHUNK]:
                if name in failed:
                    yield name, failed[name]
                elif name in results:
                    delta, loss = results[name]
                    yield name, TrainAnswer(on_site(jobs[name].stages, delta), drawn[name][1], loss)
                else:
                    yield name, self.sites[name].answer(jobs[name])
