"""An environment of its own for every peer, made once: `.fedloop/peers/<peer>` (or under $FEDLOOP_PEERS).

A peer's pins are in `<peer>.txt` beside this file. A peer without such a file runs in the project's own environment.
Torch goes first and alone, so that its build for CPUs is kept (`TORCH_CPU_INDEX` names PyTorch's own index of them).

    python benchmarks/peers/environments.py [PEER ...]
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent


class PeerMissing(Exception):
    """A peer's environment could not be made; the message says why."""


def folder() -> Path:
    return Path(os.environ.get("FEDLOOP_PEERS") or HERE.parents[1] / ".fedloop" / "peers").resolve()


def python_of(peer: str, make: bool = True) -> Path:
    """The interpreter that runs `peer`; raises PeerMissing when there is none and none may be, or can be, made."""
    pins = HERE / f"{peer}.txt"
    if not pins.exists():
        return Path(sys.executable)
    home = folder() / peer
    python, done = home / "bin" / "python", home / ".installed"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    if done.exists() and done.read_text() == wanted:
        return python
    if not make:
        raise PeerMissing(f"no environment yet: python benchmarks/peers/environments.py {peer}")
    venv.create(home, clear=True, with_pip=True)
    torch = [line for line in pins.read_text().split() if line.startswith("torch==")]
    if torch:
        alone = [str(python), "-m", "pip", "install", "-q", "--no-deps", *torch]
        index = os.environ.get("TORCH_CPU_INDEX")
        if not index or _failed([*alone, "--retries", "0", "--index-url", index]):
            _run(alone)
    _run([_uv(), "pip", "install", "-q", "--python", str(python), "--compile-bytecode", "-r", str(pins)])
    done.write_text(wanted)
    return python


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else "uv"


def _failed(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode != 0


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PeerMissing(f"{command[0]} is not installed") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise PeerMissing(lines[-1] if lines else f"{command[0]} ended with {done.returncode}")


def main() -> int:
    known = sorted(pins.stem for pins in HERE.glob("*.txt"))
    failed = False
    for peer in sys.argv[1:] or known:
        try:
            print(f"{peer}: {python_of(peer)}")
        except PeerMissing as error:
            failed = True
            print(f"{peer}: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
