"""Errors that end a call. What is wrong with one row or one clip is data, not an exception."""

from __future__ import annotations

from typing import Self


class UsageError(Exception):
    """The call itself is wrong: one clear line for the user, who can mend it and call again."""


class UnreachableError(UsageError):
    """What the call names can't be read at the moment; it may well be right."""


class StorageAwayError(UnreachableError):
    """A storage throttles, errs or gives no answer: the same call may do well in a while."""


class NoOutputError(UsageError):
    """The place can be read, and holds no output; one may come."""


class OutputMismatchError(UsageError):
    """The output belongs to another model or finishing spec; nothing was written."""


class UnfitRequestError(Exception):
    """The model can't do what a request asks: whoever asked is told the message."""

    def __init__(self, code: str, message: str) -> None:
        """Hold what is wrong in a word, for programs, and in a line."""
        super().__init__(message)
        self.code = code


class NotFiniteError(ValueError):
    """A clip's latents hold NaN or infinity: its model diverged, or a device erred. None heal."""


class RunEndingError(Exception):
    """The run can't go on, and no clip is to blame; what is committed stays."""


class StoreError(RunEndingError):
    """The storage failed for longer than its retries last, is full, or refuses us."""


class LeaseLostError(RunEndingError):
    """Another run has taken this output over: nothing more is committed here."""


class UnseenOutputError(LeaseLostError):
    """A node doesn't see the output that the run writes, but a place of its own."""

    @classmethod
    def told(cls, node: str, missing: str) -> Self:
        """Say which node, and what isn't there; in a line."""
        return cls(
            f"{node} doesn't see the output that this run writes: there is no {missing}; "
            "all nodes need the same: an s3:// URI, or a folder that each of them mounts"
        )
