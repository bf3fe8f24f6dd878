"""When evidence becomes an alarm."""

from pydantic import BaseModel, Field


class AlarmPolicy(BaseModel):
    """How many odd windows make an alarm, and how long it then keeps still."""

    odd_windows: int = Field(2, ge=2)
