"""What reading an input takes, in a child that ends before the command goes on."""

WAITING_BYTES = 9 << 20
"""The parent while its child reads, on four data sets: 7.0 to 7.6 MiB of its own, and files that no fork touches."""
STAGE_BYTES = 12 << 20
"""Arrow's blocks while parsing: text, columns, dictionaries (for ``reading.BLOCK_BYTES``)."""
