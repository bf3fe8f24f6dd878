"""An engine around an engine that weighs what travels: jobs and answers go through bytes, as they would on a wire."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping

from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Answer, Failure, Job


class Weighed:
    """bytes: by site, both ways."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.bytes: Counter[str] = Counter()

    @property
    def population(self) -> list[str]:
        return self.engine.population

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        for site, job in jobs.items():
            there = pickle.dumps(job)
            for _, answer in self.engine.ask({site: pickle.loads(there)}):  # noqa: S301 (our own bytes)
                back = pickle.dumps(answer)
                self.bytes[site] += len(there) + len(back)
                yield site, pickle.loads(back)  # noqa: S301
