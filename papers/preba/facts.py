"""The paper's stated facts (numbers.csv) by id. Nothing is computed here."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

NUMBERS = Path(__file__).resolve().parent / "numbers.csv"

COLUMNS = ("id", "claim", "value", "unit", "where", "kind", "note")


@dataclass(frozen=True)
class Fact:
    """One row of numbers.csv.

    Attributes
    ----------
    id : str
    claim : str
    text : str
        The value as it stands there.
    unit : str
    where : str
        Section, figure or table of the paper.
    kind : str
        ``stated``, or ``derived`` from what is stated.
    note : str
    """

    id: str
    claim: str
    text: str
    unit: str
    where: str
    kind: str
    note: str

    @property
    def value(self) -> float:
        """The value as a number; ValueError if it is none."""
        return float(self.text)


def load_facts(path: Path = NUMBERS) -> dict[str, Fact]:
    """Read every fact, by id, in the order of the file.

    Raises
    ------
    ValueError
        The header, a row's kind or an id is not as it should be.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if tuple(rows[0]) != COLUMNS:
        raise ValueError(f"{path}: the header must be {', '.join(COLUMNS)}")
    facts: dict[str, Fact] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS):
            raise ValueError(f"{path}:{number}: {len(row)} cells, {len(COLUMNS)} are needed")
        fact = Fact(*row)
        if fact.kind not in ("stated", "derived"):
            raise ValueError(f"{path}:{number}: kind must be stated or derived, got {fact.kind!r}")
        if fact.id in facts:
            raise ValueError(f"{path}:{number}: id {fact.id!r} is there twice")
        facts[fact.id] = fact
    return facts
