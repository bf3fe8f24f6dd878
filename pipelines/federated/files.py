"""Files that are whole or not there, and names that follow from content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none: never a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def measurements(path: Path | None) -> dict[str, Any]:
    """What was measured before, by what it depends on; a file that cannot be read is as none: it is measured anew."""
    try:
        known = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def keep_measurement(path: Path | None, key: str, value: Any) -> None:
    """Beside what others have kept meanwhile; nowhere where path is None."""
    if path is not None:
        write_atomically(path, json.dumps(measurements(path) | {key: value}, indent=1).encode())


def digest(*parts: Any) -> str:
    """A 16-hex-digit name for a piece of content, of its JSON form."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
