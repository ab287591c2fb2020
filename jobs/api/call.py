"""`Call`: whose a call is, and how a repetition of it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from jobs.api.wire import ApiError
from pipeline.batches import BatchJob
from pipeline.inbox import VideoJob


@dataclass(frozen=True)
class Call:
    """A call that makes something.

    One with the idempotency key of another that was accepted is that one, if it says the same:
    draft-ietf-httpapi-idempotency-key-header, 2.4 and 2.6.
    """

    owner: str
    idempotency_key: str | None = None
    idempotency_fingerprint: str | None = None
    """The SHA-256 of what it says; None for a call without a key."""

    @classmethod
    def read(
        cls, owner: str, idempotency_key: str | None, path: str, fields: Mapping[str, Any]
    ) -> Call:
        """Return the call that has these fields in its body; files are bytes."""
        if not idempotency_key:
            return cls(owner)
        said = json.dumps([path, fields], sort_keys=True, default=_digest_file)
        return cls(owner, idempotency_key, hashlib.sha256(said.encode()).hexdigest())

    def check(self, made: VideoJob | BatchJob) -> None:
        """Check that what its key stands for was made by a call that said the same.

        Raises:
            ApiError: it said something else.
        """
        if made.idempotency_fingerprint != self.idempotency_fingerprint:
            raise ApiError(
                HTTPStatus.UNPROCESSABLE_ENTITY,  # the draft's, 2.7: no client tries again
                f"Idempotency-Key: it stands for another call, which made {made.id}; use a new key",
                code="idempotency_key_reused",
            )


def _digest_file(content: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(content).hexdigest()}
