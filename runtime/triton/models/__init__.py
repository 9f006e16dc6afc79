"""Model files for Triton's Python backend: copied into model repositories, never imported by preba."""
