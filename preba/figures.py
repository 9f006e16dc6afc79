"""A number with its provenance, and how a scenario replaces one. What it means is said by its owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, TypeVar

from pydantic import Field

from preba.strict import Provenance, StrictModel

__all__ = ["Count", "Figure", "PositiveFigure", "figures_of", "replace_figures"]

SCENARIO_SOURCE = "set in the scenario"
"""Source of a number that the user wrote over a config file's."""


class _WithProvenance(Provenance):
    """A provenance that a value stands beside."""

    @property
    def provenance(self) -> Provenance:
        """Where the value comes from, without the value."""
        return Provenance(kind=self.kind, source=self.source, where=self.where, date=self.date, notes=self.notes)


class Figure(_WithProvenance):
    """A number >= 0 and where it comes from: ``{value: 30, kind: modelled, source: ..}``."""

    value: float = Field(ge=0)


class PositiveFigure(_WithProvenance):
    """A number > 0 and where it comes from."""

    value: float = Field(gt=0)


class Count(_WithProvenance):
    """A whole number >= 1 and where it comes from."""

    value: Annotated[int, Field(ge=1)]


AnyFigure = Figure | PositiveFigure | Count
ModelT = TypeVar("ModelT", bound=StrictModel)


def replace_figures(model: ModelT, changes: Mapping[str, float | None]) -> ModelT:
    """Puts plain numbers of a scenario in the place of a config's figures.

    Parameters
    ----------
    model : StrictModel
        Holds a figure under each changed name.
    changes : mapping of str to float or None
        New values; None keeps the config's figure.

    Returns
    -------
    StrictModel
        A copy in which each changed figure is modelled, its source being the scenario.
    """
    update: dict[str, object] = {}
    for name, value in changes.items():
        if value is None:
            continue
        old: AnyFigure = getattr(model, name)
        data = {"value": value, "kind": "modelled", "source": SCENARIO_SOURCE}
        update[name] = type(old).model_validate(data)
    return model.model_copy(update=update)


def figures_of(model: StrictModel, prefix: str) -> Iterator[tuple[str, Provenance]]:
    """All figures of a model and the models in it, as (dotted name with its value, provenance)."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        path = f"{prefix}.{name}"
        if isinstance(value, AnyFigure):
            yield f"{path} = {value.value:g}", value.provenance
        elif isinstance(value, StrictModel):
            yield from figures_of(value, path)
