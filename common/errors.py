"""The endings a command can have, as exceptions. ``common.cli.main`` turns each into its exit code and its one line."""

EXIT_OK = 0
EXIT_UNFORESEEN = 1
EXIT_USAGE = 2
EXIT_DOES_NOT_FIT = 3
EXIT_BAD_INPUT = 4
EXIT_INTERRUPTED = 130


class UsageError(ValueError):
    """The command line is wrong (exit 2): what was given, and what is accepted."""


class BadInput(ValueError):
    """An input is wrong (exit 4): what, where, what to do, in one line.

    Parameters
    ----------
    message
        The whole line, for the user's terminal; it may name the user's own path.
    public
        The same without paths or identifiers, for records and log files. Defaults to the kind of error only.
    """

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = public if public is not None else "an input could not be used"
