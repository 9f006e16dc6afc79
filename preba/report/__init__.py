"""Reports: pure functions of records, the same for simulated and measured runs. Nothing here runs a scenario."""
