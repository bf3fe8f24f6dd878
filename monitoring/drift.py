"""Evidently reports on windows."""

from pydantic import BaseModel, Field


class DriftPolicy(BaseModel):
    """What a window is and when one of its columns counts as drifted."""

    window_rows: int = Field(250, ge=50, le=20_000)
