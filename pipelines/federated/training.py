"""The one round loop: load the latest state, collect a cohort's updates, step, save, repeat.

State is data: the parameters, the server optimizer's moments, what the engine keeps, the round and the log are one
value, written atomically. Nothing else is remembered, so `kill -9` anywhere and the same call again give bit-identical
weights to an undisturbed run's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.federated.checkpoints import checkpoint, latest
from pipelines.federated.cohort import Abandoned
from pipelines.federated.engines.engine import Rounds
from pipelines.federated.jobs import Parameters
from pipelines.federated.layout import Layout
from pipelines.federated.plan import RoundRecord, TrainingPlan, TrainingState
from pipelines.federated.stages import on_server


def train(
    plan: TrainingPlan,
    initial: Parameters,
    engine: Rounds,
    folder: Path,
    on_round: Callable[[TrainingState], None] = lambda _: None,
    every_s: float = 0.0,
) -> TrainingState:
    """Run the plan's rounds from the latest checkpoint in `folder` (or from `initial`) to the end.

    every_s: seconds between checkpoints at least; rounds lost to a crash are done again with the same result, so this
    trades disk for time and nothing else. on_round is called after each round, and after a crash again for those
    that are done again.
    """
    state = latest(folder) or begin(plan, initial)
    saved = time.monotonic()
    while state.round < plan.rounds:
        state = run_round(plan, state, engine)
        if state.round == plan.rounds or time.monotonic() - saved >= every_s:
            checkpoint(folder, state)
            saved = time.monotonic()
        on_round(state)
    return state


def begin(plan: TrainingPlan, initial: Parameters) -> TrainingState:
    """The state before the first round."""
    shared = plan.strategy.rule.shared(Layout.of(initial).size)
    return TrainingState(0, initial, plan.strategy.server.start(initial), shared=shared)


def run_round(plan: TrainingPlan, state: TrainingState, engine: Rounds) -> TrainingState:
    """One round: the next state, with the same parameters where the round is abandoned."""
    number, strategy = state.round + 1, plan.strategy
    gathered, context = engine.collect(plan, state)
    loss = gathered.loss / max(gathered.examples, 1e-12)
    record = RoundRecord(number, gathered.asked, gathered.reports, gathered.examples, loss, session=gathered.session)
    if isinstance(gathered.outcome, Abandoned):
        record = replace(record, abandoned=gathered.outcome.reason)
        return replace(state, round=number, log=state.log.grown(record), context=context)
    layout = Layout.of(state.parameters)
    mean = strategy.reducer.finish(gathered.reduction) * gathered.scale
    if strategy.stages:
        mean = torch.cat([on_server(strategy.stages, mean[: layout.size]), mean[layout.size :]])
    update, shared = strategy.rule.absorb(mean, state.shared, gathered.share_of_population)
    parameters, moments = strategy.server.step(state.parameters, layout.unflatten(update), state.moments)
    return TrainingState(number, parameters, moments, state.log.grown(record), shared, context)
