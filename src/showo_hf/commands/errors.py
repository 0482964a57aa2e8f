"""The errors that end a command."""


class UsageError(Exception):
    """The arguments are not valid. The command ends with exit code 2."""


class CommandError(Exception):
    """The work failed. The command ends with exit code 1."""
