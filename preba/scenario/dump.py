"""Writing a scenario out again so that the text alone reproduces the run. No lookups here; see ``resolve``."""

from __future__ import annotations

import yaml

from preba.scenario.schema import Scenario

LONG = 20
"""Lists of so many numbers are written side by side."""


def scenario_yaml(scenario: Scenario) -> str:
    """A scenario as YAML, every default spelled out.

    Parameters
    ----------
    scenario : Scenario
        Inlined (``preba.scenario.resolve.inline``) if the text is to need no other file.

    Returns
    -------
    str
    """
    data = scenario.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Lists of many numbers, such as measured factors, in lines as long as others."""

    def list_node(self, values: list[object]) -> yaml.SequenceNode:
        """As YAML's own, unless it is long and of numbers."""
        numbers = len(values) >= LONG and all(isinstance(value, int | float) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=numbers or None)


_Dumper.add_representer(list, _Dumper.list_node)
