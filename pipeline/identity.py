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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.recipe import FinishSpec, ModelSpec
from pipeline.request import RenderRequest

SEED_BITS = 32
WEIGHT_SUFFIX = ".safetensors"
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)
CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")


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


def fingerprint_model(model: ModelSpec, checkpoint: Path) -> str:
    """Return the fingerprint of a checkpoint folder as this recipe loads it, 64 hex digits.

    It covers the content of every configuration file and of the weights in components' folders, and
    what the recipe changes in how they are loaded. The folder's place and its files' times don't
    count, nor do weights beside the components, which nothing loads: the same model again in single
    files. A hub snapshot's files are links to blobs that are named by their hash: those are not
    read again.

    Raises:
        UsageError: the folder is missing or holds no safetensors weights.
    """
    if not checkpoint.is_dir():
        raise UsageError(
            f"model.checkpoint: no folder at {checkpoint}; "
            "give a folder in diffusers format or a hub id that has been downloaded"
        )
    files = sorted(
        path
        for path in checkpoint.rglob("*")
        if path.is_file()
        and path.suffix in (WEIGHT_SUFFIX, *CONFIG_SUFFIXES)
        and (path.suffix != WEIGHT_SUFFIX or path.parent != checkpoint)
    )
    if not any(path.suffix == WEIGHT_SUFFIX for path in files):
        raise UsageError(
            f"model.checkpoint: {checkpoint} holds no *.safetensors weights in its components' "
            "folders; only safetensors checkpoints in diffusers format are loaded"
        )
    names = [path.relative_to(checkpoint).as_posix() for path in files]
    with ThreadPoolExecutor(max_workers=4) as threads:
        hashes = list(threads.map(_hash_file, files))
    settings = model.model_dump(include={"dtype", "dtypes", "blocks", "configs", "components"})
    return digest({"files": dict(zip(names, hashes, strict=True)), "load": settings})


def _hash_file(path: Path) -> str:
    """Return a file's SHA-256, from the name of its hub blob where it has one."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and not set(blob) - set("0123456789abcdef"):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
