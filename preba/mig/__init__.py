"""Multi-Instance GPU: which slices a GPU can be cut into, and the files and commands that cut it so."""
