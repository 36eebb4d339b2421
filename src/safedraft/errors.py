"""The one exception that means "you can fix this": its message is one line that says how."""


class SafeDraftError(ValueError):
    """Something a user can mend: a bad value, a pair that does not fit, a file that is not there.

    The message is a single line that names the trouble and what to do about it. The command line
    prints it after ``error:`` and exits with 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class IncompatiblePair(SafeDraftError):
    """The two models cannot decode together."""


class BrokenModel(SafeDraftError):
    """A model gave logits that are not numbers; nothing is decoded without both models."""
