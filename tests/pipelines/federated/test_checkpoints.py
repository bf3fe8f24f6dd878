"""Checkpoints: whatever happens to the files, a run ends with the very same weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import RULES, equal, plan_over, sites_in
from tiny_sites import initial

from pipelines.federated.checkpoints import KEPT, checkpoint, latest
from pipelines.federated.jobs import Parameters
from pipelines.federated.plan import History, RoundRecord, TrainingState
from pipelines.federated.server_optimizers import Adam
from pipelines.federated.training import train


@pytest.fixture(scope="module", params=RULES.values(), ids=RULES)
def halfway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """An engine, its plan, the state after 6 rounds and the checkpoints after 4."""
    root = tmp_path_factory.mktemp("halfway")
    engine, snapshots = sites_in(root / "sites")
    end = train(plan_over(snapshots, 6, request.param), initial(), engine, root / "whole")
    train(plan_over(snapshots, 4, request.param), initial(), engine, root / "half")
    files = {path.name: path.read_bytes() for path in (root / "half").iterdir()}
    return engine, plan_over(snapshots, 6, request.param), end, files


@pytest.fixture
def half(halfway, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    for name, content in halfway[3].items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def damage_truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flipped(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 0xFF]) + data[-19:]


def damage_round(data: bytes) -> bytes:
    assert data.count(b'"round":"4"') == 1
    return data.replace(b'"round":"4"', b'"round":"5"')


@pytest.mark.parametrize("damage", [damage_truncated, damage_flipped, damage_round, lambda _: b"", lambda _: b"{" * 99])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(halfway, half, damage, caplog) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, _ = halfway
    last = max(half.iterdir())
    last.write_bytes(damage(last.read_bytes()))
    with caplog.at_level(logging.WARNING):
        state = latest(half)
    assert state is not None
    assert state.round == 3
    assert last.name in caplog.text
    assert equal(train(plan, initial(), engine, half), end)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_single_damaged_byte_goes_unnoticed(halfway, half: Path, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    content = bytearray(halfway[3]["round-000004.safetensors"])
    whole = [latest_of(halfway[3], upto, half) for upto in (3, 4)]
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
    content[place] ^= data.draw(st.integers(1, 255))
    (half / "round-000004.safetensors").write_bytes(bytes(content))
    found = latest(half)
    assert found is not None
    assert any(equal(found, state) for state in whole)


def latest_of(files: Mapping[str, bytes], upto: int, folder: Path) -> TrainingState:
    for name, content in files.items():
        (folder / name).write_bytes(content)
        if name > f"round-{upto:06d}.safetensors":
            (folder / name).unlink()
    found = latest(folder)
    assert found is not None
    assert found.round == upto
    return found


def test_with_all_checkpoints_damaged_the_run_starts_again_and_ends_the_same(halfway, half: Path) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, _ = halfway
    for path in half.iterdir():
        path.write_bytes(damage_truncated(path.read_bytes()))
    assert latest(half) is None
    assert equal(train(plan, initial(), engine, half), end)


def test_a_partly_written_checkpoint_is_no_checkpoint(halfway, half: Path) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, files = halfway
    (half / "round-000005.safetensors.partial").write_bytes(files["round-000004.safetensors"][:100])
    state = latest(half)
    assert state is not None
    assert state.round == 4
    assert equal(train(plan, initial(), engine, half), end)


def test_a_finished_run_is_not_run_again(halfway, half: Path) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, _ = halfway
    train(plan, initial(), engine, half)
    rounds: list[TrainingState] = []
    assert equal(train(plan, initial(), engine, half, rounds.append), end)
    assert rounds == []


def test_an_empty_or_missing_folder_has_no_latest_state(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_checkpoints_are_bounded_in_number_and_hold_the_whole_state(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters: Parameters = {"w": torch.randn(3, 2, generator=generator), "b": torch.randn((), generator=generator)}
    moments = Adam().start(parameters)
    context = {
        "clock": torch.tensor(3.5, dtype=torch.float64),
        "memory/w": torch.randn(7, 4, generator=generator).T,
        "w": torch.arange(3),
        "seen": torch.tensor([True, False]),
        "none": torch.zeros(0, 2),
    }
    for number in range(1, 12):
        session = {"dropped": {"low battery": number, "moved": 0}, "waited_s": 1.5, "hours": [0.1, None]}
        log = History(
            RoundRecord(i, 3, 2, 40.0, 0.1, "too few" if i % 2 else None, session if i % 3 else {})
            for i in range(number)
        )
        shared = torch.randn(number - 1, generator=generator)
        state = TrainingState(number, parameters, moments, log, shared, context)
        checkpoint(tmp_path, state)
        found = latest(tmp_path)
        assert found is not None
        assert equal(found, state)
        assert len(list(tmp_path.iterdir())) <= KEPT
