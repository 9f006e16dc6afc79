"""The brain: batchers as state machines without clock, I/O, randomness or logging.

Events go in with their time, batches and the next due time come out. The simulator, and later the compiled
engine and the live server, drive the same functions (law 1). ``brain`` is the door; the other modules are
written in the subset of Python that Numba compiles: functions over one NamedTuple of integer arrays.
"""
