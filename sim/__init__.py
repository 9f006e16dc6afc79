"""Simulation engines behind one call, and the closed forms they are checked against.

No batching policy and no constant of its own lives here: policies come from ``preba.batching``,
numbers from the scenario.
"""
