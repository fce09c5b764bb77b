"""What all objects of a topology file have in common."""

from pydantic import BaseModel, ConfigDict


class FileObject(BaseModel):
    """An object of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
