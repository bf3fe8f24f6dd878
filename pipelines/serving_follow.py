"""Who follows the registry's aliases, so that the service answers with the champion.

In goes the alias `champion`, and where versions are released by steps the version beside it; out comes one reference
that is replaced as a whole: a request that took it keeps its versions to the end, and the next one gets the new ones.
A version that does not fit is refused and the old one serves on; so it does while the registry does not answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from models.errors import FedloopError, Missing
from monitoring import moves
from pipelines import local_copy, registry
from pipelines.registry import CHALLENGER, CHAMPION, FALLBACK, STEP, Version
from pipelines.serving_model import Beside, ServedModel, load_version
from pipelines.settings import Settings

POLL_S = 1.0
_KEPT = 3  # loaded versions: champion, fallback and challenger change places

logger = logging.getLogger("fedloop.service")


class ChampionWatcher:
    """Follows the alias `champion`, and who predicts beside it.

    served: the model to use now, or None. problem: why the registry cannot be followed. refused: a champion that was
    not taken, and why. refused_beside: the same of the version beside it.
    """

    def __init__(self, settings: Settings, on_swap: Callable[[ServedModel | None], None]) -> None:
        self.settings = settings
        self.served: ServedModel | None = None
        self.problem: str | None = "the champion is being looked up"
        self.refused: tuple[Version, str] | None = None
        self.refused_beside: tuple[Version, str] | None = None
        self._on_swap = on_swap
        self._kept: list[ServedModel] = []

    async def follow(self) -> None:
        """Look once a second, for ever."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Look the aliases up once and swap where they have moved. Never raises."""
        try:
            champion = registry.by_alias(self.settings, CHAMPION)
            self._take(champion)
            if champion is not None and self.settings.steps:
                self._take_beside(champion)
            self._report(None)
        except FedloopError as error:
            self._alone(str(error))
        except Exception as error:  # whatever the registry's client throws: the old model serves on
            self._alone(f"the champion cannot be looked up: {type(error).__name__}: {error}")

    def why_none(self) -> str:
        """Why no model serves, and what to do."""
        if self.refused is not None:
            return f"the champion, version {self.refused[0].number}, was refused: {self.refused[1]}"
        return self.problem or (
            f"no version of {self.settings.model_name!r} is champion yet; "
            "train one with `make run`, or promote one with `fedloop promote`"
        )

    def _take(self, champion: Version | None) -> None:
        if champion is None:
            self.refused = None
            local_copy.remember(self.settings, None)
            if self.served is not None:
                logger.warning(
                    "version %d is champion no more, and nobody is: serving stops", self.served.version.number
                )
                self._swap(None)
            return
        if self.served is not None and _same(self.served.version, champion):
            self.refused = None
            self.served = replace(self.served, version=champion)  # its tags may have changed
            return
        if self.refused is not None and _same(self.refused[0], champion):
            return
        new = self._loaded(champion)
        if isinstance(new, str):
            self.refused = (champion, new)
            kept = "nothing" if self.served is None else f"version {self.served.version.number}"
            logger.error("version %d is refused: %s; %s serves on", champion.number, new, kept)
            return
        self.refused = None
        logger.info("version %d serves from now on", champion.number)
        self._swap(replace(new, since=time.time()))

    def _take_beside(self, champion: Version) -> None:
        """Have the version in shadow or canary predict too, or of a champion on probation the one before it."""
        if self.served is None or not _same(self.served.version, champion):
            return
        wanted, step = registry.by_alias(self.settings, CHALLENGER), ""
        if wanted is not None and wanted.tags.get(STEP) in moves.BESIDE:
            step = wanted.tags[STEP]
        elif champion.tags.get(STEP) == moves.CHAMPION:
            wanted, step = registry.by_alias(self.settings, FALLBACK), FALLBACK
        before, beside = self.served.beside, None
        if wanted is not None and step and not (self.refused_beside and _same(self.refused_beside[0], wanted)):
            model = self._loaded(wanted)
            if isinstance(model, str):
                self.refused_beside = (wanted, model)
                logger.error("version %d cannot predict beside the champion: %s", wanted.number, model)
            else:
                share = self.settings.release.canary_share if step == moves.CANARY else 0.0
                sites = tuple(json.loads(wanted.tags.get("fedloop.cohort", "[]")))
                beside, self.refused_beside = Beside(model, step, share, sites), None
        if (beside and (beside.model.version.number, beside.step)) != (
            before and (before.model.version.number, before.step)
        ):
            what = f"version {beside.model.version.number} ({beside.step})" if beside else "nobody"
            logger.info("beside version %d predicts %s", champion.number, what)
        self.served = replace(self.served, beside=beside)

    def _loaded(self, version: Version) -> ServedModel | str:
        """The version ready to serve, or why it cannot be."""
        for one in self._kept:
            if _same(one.version, version):
                return replace(one, version=version)
        try:
            new = load_version(self.settings, version)
        except Missing:
            raise
        except Exception as error:  # a broken version must not stop the one that serves
            return str(error) if isinstance(error, FedloopError) else f"{type(error).__name__}: {error}"
        self._kept = [*self._kept, new][-_KEPT:]
        return new

    def _swap(self, new: ServedModel | None) -> None:
        self.served = new
        self._on_swap(new)
        local_copy.remember(self.settings, None if new is None else new.version)

    def _alone(self, problem: str) -> None:
        """The registry does not answer: serve on, or begin with the local copy of the last champion."""
        if self.served is None and self.refused is None:
            try:
                known = local_copy.recall(self.settings)
                if known is not None:
                    self.served = load_version(self.settings, *known)
                    self._on_swap(self.served)
            except Exception as error:  # the registry's problem is to be told all the same
                problem = f"{problem}; {error}"
        if self.served is not None:
            problem = f"{problem}; version {self.served.version.number}, known from before, serves"
            if self.served.beside is not None and self.served.beside.share:
                # Nobody could hold it now.
                self.served = replace(self.served, beside=replace(self.served.beside, share=0.0))
        self._report(problem)

    def _report(self, problem: str | None) -> None:
        if problem != self.problem and problem is not None:
            logger.warning("%s", problem)
        self.problem = problem


def _same(a: Version, b: Version) -> bool:
    return (a.number, a.created_at) == (b.number, b.created_at)
