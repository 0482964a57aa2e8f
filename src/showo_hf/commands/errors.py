"""How a command ends when it cannot do what was asked."""


class UsageError(Exception):
    """What the user asked for is not possible. The command ends with exit code 2."""


class CommandError(Exception):
    """The work failed. The command ends with exit code 1."""
