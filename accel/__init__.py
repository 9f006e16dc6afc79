"""The preprocessing stage: what it costs, as stations for the simulator. No batching decisions live here."""
