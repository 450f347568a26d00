"""The memory-control layer: plan, train and infer inside a stated number of bytes."""

__version__ = "0.2.0"
