"""While Prefect is down nobody who asks for a prediction notices, and what was decided waits."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from live_service import free_port, process, register_untrained, settings_in
from tiny_flows import retrain
from watching import Runs, new_decision, row_of, until

from flows import serve_flows
from flows.events import announce
from flows.ports import free_ports
from flows.reconcile import settle
from models.images import encode_png
from monitoring import moves
from pipelines import release, steps
from pipelines.settings import Settings

pytestmark = pytest.mark.house


def test_without_prefect_the_service_answers_and_a_decision_and_a_version_in_shadow_wait(
    prefect_house: Settings, tmp_path: Path, empty_registry: Path
) -> None:
    there = settings_in(tmp_path, empty_registry)
    there.ports = prefect_house.ports
    there.retrain = there.retrain.model_copy(update={"minimum_new_rows": 0})
    down = free_ports(there)  # nobody listens where its Prefect should be
    release.promote(down, register_untrained(down, 1).number, "first")
    assert "goes into shadow" in steps.begin(down, register_untrained(down, 2).number, "better")
    picture = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
    with process(down, port := free_port()):

        def ask() -> int | None:
            with suppress(httpx.TransportError):
                address = f"http://127.0.0.1:{port}/predict/image?site=s"
                said = httpx.post(address, content=picture, headers={"content-type": "image/png"}, trust_env=False)
                return said.json()["model_version"] if said.status_code == 200 else None
            return None

        until(ask)
        decision = new_decision(down)
        assert announce(down, decision, patience_s=0.5) is False
        assert row_of(down, decision.decision) == decision
        assert ask() == 1
        # Prefect is back: the pass tells it, once, and the service goes on.
        serve_flows.deployment(there, retrain, on_drift=True).apply()
        runs = Runs(there)
        assert settle(there) == [f"decision {decision.decision} is announced"]
        until(runs.live)
        with release.ledger(there) as engine:
            assert moves.standing(engine)[2].to_step == "shadow"
        assert ask() == 1
