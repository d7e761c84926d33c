"""The one exception for mistakes in what a user gave; the command line prints its message and nothing else."""


class InputError(ValueError):
    """Bad input: the message says what was wrong, the value, what was expected and what to do about it."""
