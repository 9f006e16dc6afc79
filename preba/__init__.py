"""preba: predict how an inference server on partitioned GPUs behaves, and how true the prediction is.

This package holds the vocabulary, the batchers (the brain), traces, records, reports and MIG geometry.
No SimPy, no Triton, no DALI, no NVML and no threads live here.
"""

__version__ = "0.1.0"
