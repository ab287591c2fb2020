"""Write `ads.parquet`, the demo's table: four products, each for the places it is advertised in.

Run it from anywhere: `python examples/make_ads.py`. The prompts keep to what the embedded model
knows: a shape, a colour, a motion and a background.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SIZES = {"1:1": (64, 64), "9:16": (48, 80), "16:9": (80, 48)}
ADS = [
    ("juice", "en-US", "16:9", "A green bottle moving left on a yellow background"),
    ("juice", "ko-KR", "9:16", "노란 배경에서 왼쪽으로 움직이는 초록 병"),
    ("juice", "de-DE", "1:1", "A green bottle spinning on a yellow gradient background"),
    ("sneaker", "en-US", "9:16", "A red shoe moving up on a white background"),
    ("sneaker", "de-DE", "16:9", "A red shoe moving right on a gray gradient background"),
    ("coffee", "en-US", "1:1", "A brown cup growing on an orange gradient background"),
    ("coffee", "ko-KR", "16:9", "A white cup standing still on a brown background"),
    ("gift", "en-US", "9:16", "A pink box moving down on a purple gradient background"),
]


def build_table() -> pa.Table:
    """Return the demo's rows: ids, prompts, sizes, and three labels."""
    rows = [
        {
            "id": f"{product}-{locale}-{aspect.replace(':', 'x')}",
            "prompt": prompt,
            "width": SIZES[aspect][0],
            "height": SIZES[aspect][1],
            "num_frames": 17,
            "product": product,
            "locale": locale,
            "aspect": aspect,
        }
        for product, locale, aspect, prompt in ADS
    ]
    return pa.Table.from_pylist(rows)


if __name__ == "__main__":
    pq.write_table(build_table(), Path(__file__).with_name("ads.parquet"))
