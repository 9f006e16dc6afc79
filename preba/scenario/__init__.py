"""Scenarios: what a user writes in YAML (``schema``), how it is read (``load``), what it means (``resolve``)."""
