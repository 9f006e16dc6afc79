"""The live server's room: front end, Triton processes per slice, MIG management, load generation.

Not built yet. What it will share with the simulator is already in place: the batchers of
``preba.batching`` (driven with a real clock), the trace, and the record schema of ``preba.records``.
"""
