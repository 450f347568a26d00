"""Names that the price of a training and the training itself share: of its phases, and of one term."""

LOAD, TRAIN, VALIDATE, CHECKPOINT, EXPORT = "load", "train", "validate", "checkpoint", "export"
FREE_HEAP = "free heap"
"""Term of the bytes that the bounded heap may keep free; the training takes the heap's bound from it."""
STATES, WHOLE, SHARED = "states", "whole", "shared"
"""A knob of several ranks and its values: each has all parameters and optimiser states, or a part of them."""
