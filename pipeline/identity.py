"""Identity: what a clip is, as a hash, so that the same clip is never rendered twice.

`clip_id` is the SHA-256 of the canonical form of the request and of the renderer's digest, which is
that of the model fingerprint and the finishing spec.
The canonical form is JSON with sorted keys, no white space and UTF-8 text; integers stay integers
and floats are written in Python's shortest round-trip form, which is the same on every platform.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.recipe import FinishSpec
from pipeline.request import RenderRequest

SEED_BITS = 32
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)


def canonical_json(value: Any) -> bytes:
    """Return the one canonical encoding of a JSON value.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value is not JSON.
    """
    return _CANONICAL.encode(value).encode("utf-8")


def digest(value: Any) -> str:
    """Return the SHA-256 of `value`'s canonical form, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def derive_seed(fields: Mapping[str, Any]) -> int:
    """Return the seed of a request that names none: a hash of all its other fields."""
    return int(digest({"seed-of": dict(fields)})[: SEED_BITS // 4], 16)


def clip_id(request: RenderRequest, renderer: str) -> str:
    """Return the id of the clip that `request` asks of a renderer, 64 hex digits.

    renderer: what `digest_renderer` returns.
    """
    fields = dict(vars(request))
    opening = fields.pop("opening")
    if opening:
        fields["opening"] = vars(opening)
    return digest({"request": fields, "renderer": renderer})


def digest_renderer(model_fingerprint: str, finish: FinishSpec) -> str:
    """Return the digest of all that makes a clip, beside its request, 64 hex digits."""
    return digest({"model": model_fingerprint, "finish": finish.model_dump()})
