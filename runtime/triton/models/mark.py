"""The mark by which an emulated slice knows that a row of its input is from preba; also written in emulated.py."""

MARK = 1717.0
