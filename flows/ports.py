"""Ports: who may listen where. Asked before anything starts, so that a port in use is one clear sentence."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import psutil

from flows.programs import Program
from models.errors import BadInput
from pipelines.settings import PortSettings, Settings


def free_ports(settings: Settings) -> Settings:
    """The same settings with ports that nobody uses at this moment."""
    with ExitStack() as stack:
        found = {}
        for name in PortSettings.model_fields:
            probe = stack.enter_context(socket.socket())
            probe.bind((settings.host, 0))
            found[name] = probe.getsockname()[1]
    return settings.model_copy(update={"ports": PortSettings(**found)})


def check_ports(settings: Settings, wanted: Sequence[Program]) -> None:
    """Nothing, when these processes can have their ports.

    Raises:
        BadInput: a sentence for every port that is in use: who has it, and which setting moves ours.
    """
    complaints = []
    for program in wanted:
        if program.port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, program.port))
            except OSError as error:
                complaints.append(
                    f"port {program.port} for the {program.title} is not free on {settings.host} "
                    f"({_holder(program.port) or error.strerror}); set {program.setting} to another one"
                )
    if complaints:
        raise BadInput("; ".join(complaints) + ". Nothing was started.")


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and getattr(one.laddr, "port", 0) == port:
                process = psutil.Process(one.pid)
                return f"process {process.pid} has it: {' '.join(process.cmdline())[:120] or process.name()}"
    return ""
