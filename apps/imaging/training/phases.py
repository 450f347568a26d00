"""Names that the price of a training and the training itself share: of its phases, and of one term."""

LOAD, TRAIN, VALIDATE, CHECKPOINT, EXPORT = "load", "train", "validate", "checkpoint", "export"
FREE_HEAP = "free heap"
"""The term of what the bounded heap may keep free; its size also bounds that heap."""
