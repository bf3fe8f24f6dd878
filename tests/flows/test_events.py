"""Announcing: what could not be told is said to be so, and its row stays as it was."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from watching import new_decision, row_of

from flows.events import announce
from flows.ports import free_ports
from pipelines.settings import Settings, load_settings


@pytest.fixture
def alone(tmp_path: Path) -> Settings:
    """Settings of a home whose Prefect server does not run."""
    return free_ports(load_settings("digits", home=tmp_path))


def test_a_server_that_is_down_loses_nothing(alone: Settings) -> None:
    row = new_decision(alone)
    began = time.monotonic()
    assert announce(alone, row, patience_s=1.0) is False
    assert time.monotonic() - began < 5
    assert row_of(alone, row.decision) == row


def test_a_server_that_comes_up_late_is_told(alone: Settings) -> None:
    row, heard = new_decision(alone), []

    def answer() -> None:
        time.sleep(1.0)
        with socket.create_server(("127.0.0.1", alone.ports.prefect)) as server:
            caller, _ = server.accept()
            with caller:
                heard.append(caller.recv(65536))
                caller.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert announce(alone, row, patience_s=10.0) is True
    thread.join()
    assert heard[0].startswith(b"POST /api/events ")
    assert row_of(alone, row.decision).state == "emitted"


@pytest.mark.house
def test_a_row_that_is_done_stays_done(prefect_house: Settings) -> None:
    live = prefect_house.model_copy(update={"stage": "live"})
    row = new_decision(live, state="done")
    assert announce(live, row)
    assert row_of(live, row.decision) == row
