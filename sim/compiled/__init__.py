"""The compiled engine: the reference engine's model and the batchers as they stand, as machine code."""
