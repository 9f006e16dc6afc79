"""Sweeps: many points of a scenario, run by any executor, kept in a folder that a killed sweep can be resumed from."""
