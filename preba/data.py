"""Where the data files that travel with preba lie; nothing is read or parsed here."""

from __future__ import annotations

import os
from pathlib import Path

from preba.errors import MissingFileError

__all__ = ["config_folder"]


def config_folder() -> Path:
    """Return the folder that holds devices, profiles, hardware and scenarios.

    Returns
    -------
    pathlib.Path
        ``$PREBA_CONFIGS`` when it is set, else ``configs/`` beside the package (a checkout or an
        editable install).

    Raises
    ------
    MissingFileError
        When that folder does not exist; the message names both ways to give it.
    """
    override = os.environ.get("PREBA_CONFIGS")
    folder = Path(override) if override else Path(__file__).resolve().parent.parent / "configs"
    if not folder.is_dir():
        raise MissingFileError(
            f"configs: the folder {folder} does not exist; set PREBA_CONFIGS to the configs/ of a checkout"
        )
    return folder
