"""Reads what other people's tools measured: perf_analyzer, Triton itself, MLPerf LoadGen. Nothing is measured here."""
