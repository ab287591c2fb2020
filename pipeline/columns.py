"""The columns of prompt tables, planned rows and manifests, each named once."""

# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import pyarrow as pa

from pipeline.request import RenderRequest

REQUEST_COLUMNS = tuple(name for name in RenderRequest.model_fields if name != "opening")
KNOWN_COLUMNS = ("id", *REQUEST_COLUMNS, "seconds")
"""The columns of a prompt table that mean something. Every other one is a label."""

ROW_TYPES = {
    "row": pa.int64(),
    "id": pa.string(),
    "clip_id": pa.string(),
    "reject": pa.string(),
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "num_frames": pa.int64(),
    "fps": pa.float64(),
    "seed": pa.int64(),
    "num_inference_steps": pa.int64(),
    "guidance_scale": pa.float64(),
}
"""The columns of a planned table, before its labels."""
ROW_COLUMNS = tuple(ROW_TYPES)

FILE_COLUMN = "source_file"
"""The column of rejects that says which file `row` counts in: a table may be many. Where a label
has that name, it has an underscore before it."""

SOURCE_KEY = b"rushes.source"
"""Under this key the metadata of saved rows has the URI that they came from."""

STAGES = ("encode", "denoise", "develop", "upload")
"""The stages whose seconds are kept."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("clip_id", pa.string()),
        ("status", pa.string()),
        ("uri", pa.string()),
        ("poster_uri", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int64()),
        ("guidance_scale", pa.float64()),
        ("model", pa.string()),
        ("model_fingerprint", pa.string()),
        ("layout", pa.string()),
        ("attempt", pa.string()),
        ("error", pa.string()),
        ("sha256", pa.string()),
        ("size_bytes", pa.int64()),
        *((f"{stage}_s", pa.float64()) for stage in STAGES),
        ("device_seconds", pa.float64()),
    ]
)
"""The manifest's own columns, before the labels."""

RESERVED = frozenset(
    name.casefold() for name in (*KNOWN_COLUMNS, *ROW_COLUMNS, *MANIFEST_SCHEMA.names)
)
"""Names that no label can have, in any case, as SQL has none: one gets `label_` before it."""
