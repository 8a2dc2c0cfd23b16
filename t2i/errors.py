"""The one exception for mistakes of the user: the command line prints its message in one line and exits with status 2."""


class InputError(ValueError):
    """Bad input: the message names the value, the file and the fix."""
