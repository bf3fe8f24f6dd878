"""The champion's copy on this disk: what a service starts with while the registry does not answer.

In goes the version that was taken up last; out comes the same one, if its files are still what they were.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from models.errors import BadInput
from pipelines import packing
from pipelines.federated.files import write_atomically
from pipelines.registry import Version
from pipelines.settings import Settings


def remember(settings: Settings, version: Version | None) -> None:
    """Note who serves; its files lie where `registry.fetch` put them. None: nobody does."""
    path = _note(settings)
    if version is None:
        path.unlink(missing_ok=True)
        return
    write_atomically(path, json.dumps(asdict(version)).encode())


def recall(settings: Settings) -> tuple[Version, Path] | None:
    """The version that served last, and its folder; None where nobody did.

    Raises:
        BadInput: the note or a file of the version is damaged or gone.
    """
    path = _note(settings)
    try:
        version = Version(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path} cannot be read, so nothing is known of who served last") from error
    folder = settings.folder / "models" / str(version.number)
    if not packing.intact(folder):
        raise BadInput(f"the local copy of version {version.number} in {folder} is damaged, so it is not served")
    return version, folder


def _note(settings: Settings) -> Path:
    return settings.folder / "models" / "champion.json"
