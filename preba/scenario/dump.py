"""Writing a scenario out again so that the text alone reproduces the run. No lookups here; see ``resolve``."""

from __future__ import annotations

import yaml

from preba.scenario.schema import Scenario


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
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
