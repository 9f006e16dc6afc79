"""The strict pydantic base of everything a user writes in YAML, and the provenance every number carries."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Provenance", "StrictModel"]


class StrictModel(BaseModel):
    """A frozen value whose unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class Provenance(StrictModel):
    """Where a number comes from (law 7).

    ``measured`` says where, when and how; ``published`` says which paper or table; ``modelled`` says
    under which assumption. All three need a ``source`` in words.
    """

    kind: Literal["measured", "published", "modelled"]
    source: str = Field(min_length=8)
    where: str | None = None
    date: str | None = None
    notes: str | None = None
