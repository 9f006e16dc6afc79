"""Real Triton servers: where the program is, what it is told to serve, and one process of it."""
