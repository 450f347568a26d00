"""Names of the phases that the price of an inference and the inference itself share."""

OPEN, STATISTICS, TEMPLATE, INFER, PREVIEW, STOW = "open", "statistics", "template", "infer", "preview", "stow"
