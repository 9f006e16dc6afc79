"""What only a GPU can tell: preprocessing and model profiles, interference between partitions, the pipeline on it.

Every piece runs by itself, says why when it cannot, needs no network and changes no setting of the GPU.
"""
