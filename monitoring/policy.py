"""When evidence is enough for an alarm, how long the alarm then keeps still, and whom it tells: settings `alarm.*`."""

from __future__ import annotations

import math
from datetime import datetime, time, timedelta
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Period(BaseModel):
    """A part of the week that is known to be different: nights, weekends. From `start` to `end` local time, past
    midnight where `end` is not later; `days` are those on which it starts.
    """

    name: str = Field(min_length=1)
    days: tuple[Day, ...] = DAYS
    start: time = time(0)
    end: time = time(0)
    windows: Literal["apart", "ignored"] = Field(
        "apart", description="compared with the period's own first windows, or left out of the evidence"
    )

    def holds(self, at: float) -> bool:
        """Whether the moment `at`, in seconds since the epoch, lies in it, by this machine's clock and time zone."""
        moment = datetime.fromtimestamp(at)
        for began in (moment.date(), moment.date() - timedelta(days=1)):
            if DAYS[began.weekday()] not in self.days:
                continue
            end = datetime.combine(began + timedelta(days=self.end <= self.start), self.end)
            if datetime.combine(began, self.start) <= moment < end:
                return True
        return False


class AlarmPolicy(BaseModel):
    """How often an alarm may be false, how long a change must last, and how long an alarm then keeps still."""

    false_per_1000: float = Field(1.0, gt=0, le=100, description="false alarms in 1,000 windows of stable traffic")
    persistence: int = Field(2, ge=1, le=10, description="windows that must speak for a change: no one of them alone")
    error_margin: float = Field(
        0.03, ge=0, lt=1, description="further share of wrong answers, by labels, that is no evidence of anything"
    )
    memory_windows: int = Field(50, ge=10, le=500, description="windows back to which a change may have begun")
    schedule: tuple[Period, ...] = Field((), description="known parts of the week; the first that holds counts")
    schedule_windows: int = Field(3, ge=1, description="windows of a part of the week that become its reference")
    cooldown_s: float = Field(1800.0, ge=0, description="silence after the last retraining ended, well or not")
    per_day: int = Field(4, ge=1, description="decisions for drift in any 24 hours")
    attempts: int = Field(3, ge=1, description="runs that may die over one decision before it is given up")
    notify: tuple[str, ...] = Field((), description="Apprise URLs that are told every decision")
    webhook: str = Field("", description="an http(s) address that every decision is posted to as JSON")
    notify_block: str = Field("", description="a Prefect notification block, type/name, that is told every decision")

    @property
    def log_level(self) -> float:
        """What the logarithm of the evidence must reach: on average it takes e to this many windows by chance."""
        return math.log(1000.0 / self.false_per_1000)

    @field_validator("webhook")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is no http:// or https:// address")
        return value

    @model_validator(mode="after")
    def _enough_memory(self) -> AlarmPolicy:
        if self.memory_windows <= self.persistence + self.schedule_windows:
            raise ValueError(f"memory_windows ({self.memory_windows}) must exceed persistence and schedule_windows")
        return self
