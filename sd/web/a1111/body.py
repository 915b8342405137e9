"""What the bodies of the webui's API have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from sd.web.jobs.limits import MAX_BODY


def without_nulls(fields: dict) -> dict:
    """Returns the fields that are not null."""
    return {name: value for name, value in fields.items() if value is not None}


class WebuiBody(BaseModel):
    """A request's body, of which a field that is null counts as left out."""

    model_config = ConfigDict(allow_inf_nan=False, str_max_length=MAX_BODY)

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, data: Any) -> Any:
        return without_nulls(data) if isinstance(data, dict) else data
