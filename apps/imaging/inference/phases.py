"""Names of the phases that the price of an inference and the inference itself share."""

OPEN, STATISTICS, TEMPLATE, INFER, PREVIEW, STOW = "open", "statistics", "template", "infer", "preview", "stow"
WRITE = "write"
"""Where several networks share a label map: it is complete, and goes to the outputs."""
