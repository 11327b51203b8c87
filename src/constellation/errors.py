"""Errors that are a person's to mend, told apart from our own defects."""


class InputError(ValueError):
    """Bad input: the message says what was expected, what was found, and what to do.

    The command line prints it as one paragraph and exits with code 2; anything else shows its traceback.
    """
