"""Errors that end a call. What is wrong with one row or one clip is data, not an exception."""


class UsageError(Exception):
    """The call itself is wrong: one clear line for the user, who can mend it and call again."""


class OutputMismatchError(UsageError):
    """The output belongs to another model or finishing spec; nothing was written."""
