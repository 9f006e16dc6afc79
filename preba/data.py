"""Where the data files that travel with preba lie; nothing is read or parsed here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from preba.errors import MissingFileError

__all__ = ["config_folder"]


def config_folder() -> Path:
    """Return the folder that holds devices, profiles, hardware and scenarios.

    Returns
    -------
    pathlib.Path
        ``$PREBA_CONFIGS`` when it is set, else ``configs/`` beside the package (a checkout or an
        editable install), else ``share/preba/configs`` of the environment (an installed wheel).

    Raises
    ------
    MissingFileError
        When there is none; the message names the places looked at and how to give another.
    """
    override = os.environ.get("PREBA_CONFIGS")
    beside = Path(__file__).resolve().parent.parent / "configs"
    installed = Path(sys.prefix) / "share" / "preba" / "configs"
    places = [Path(override)] if override else [beside, installed]
    for folder in places:
        if folder.is_dir():
            return folder
    looked = " and ".join(map(str, places))
    raise MissingFileError(f"configs: no folder at {looked}; set PREBA_CONFIGS to the configs/ of a checkout")
