"""An id depends on what a clip is and nothing else: not on key order, process or number form."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identity import canonical_json, clip_id, derive_seed, digest, digest_renderer
from pipeline.recipe import FinishSpec
from pipeline.request import RenderRequest

FIELDS: dict[str, Any] = {
    "prompt": "노란 배경에서 왼쪽으로 움직이는 초록 병",
    "negative_prompt": "",
    "width": 48,
    "height": 80,
    "num_frames": 17,
    "fps": 8.0,
    "seed": 7,
    "num_inference_steps": 16,
    "guidance_scale": 4.5,
}
KNOWN_DIGEST = "123b424b7606d08d0756074e1f76051117423e1a66a03e02f56fd334de63705b"
KNOWN_CLIP_ID = "758451d4a7b5f02c35fa67297a6cd7a66bdf597f27dbd3687530e01b8d4a9b73"
KNOWN_SEED = 4017288884
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def id_of(**changes: Any) -> str:
    return clip_id(RenderRequest(**(FIELDS | changes)), digest_renderer("m" * 64, FinishSpec()))


def test_known_answers() -> None:
    """These digests name clips in outputs that people keep: a change here orphans them all."""
    assert digest({"b": [1, 2.5], "a": "é"}) == KNOWN_DIGEST
    assert id_of() == KNOWN_CLIP_ID
    assert derive_seed({k: v for k, v in FIELDS.items() if k != "seed"}) == KNOWN_SEED


def test_the_canonical_form() -> None:
    value = {"b": [1, 2.5, None, True], "a": "é\u2028"}
    assert canonical_json(value) == '{"a":"é\u2028","b":[1,2.5,null,true]}'.encode()


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=6), st.randoms())
def test_key_order_does_not_count(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)


@given(JSON)
def test_the_canonical_form_reads_back(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.sampled_from(sorted(FIELDS)), st.integers(5, 1000))
def test_every_field_counts(name: str, number: int) -> None:
    old = FIELDS[name]
    new = f"ad {number}" if isinstance(old, str) else type(old)(number * 2 + 1)
    if new != old:
        assert id_of(**{name: new}) != id_of()


@given(st.integers(1, 120))
def test_a_whole_float_field_has_one_id(number: int) -> None:
    for name in ("fps", "guidance_scale"):
        assert id_of(**{name: number}) == id_of(**{name: float(number)})


def test_text_counts_in_its_composed_form() -> None:
    assert id_of(prompt="cafe\u0301") == id_of(prompt=" café\n")


def test_model_and_finish_count() -> None:
    request = RenderRequest(**FIELDS)
    ids = {
        clip_id(request, digest_renderer("m" * 64, FinishSpec())),
        clip_id(request, digest_renderer("n" * 64, FinishSpec())),
        clip_id(request, digest_renderer("m" * 64, FinishSpec(crf=20))),
    }
    assert len(ids) == 3


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_another_process_gives_the_same_id(hash_seed: str) -> None:
    code = (
        "import json, sys; from pipeline.identity import clip_id, digest_renderer; "
        "from pipeline.recipe import FinishSpec; from pipeline.request import RenderRequest; "
        "request = RenderRequest(**json.loads(sys.argv[1])); "
        "print(clip_id(request, digest_renderer('m' * 64, FinishSpec())))"
    )
    backwards = json.dumps(dict(reversed(FIELDS.items())))
    result = subprocess.run(
        [sys.executable, "-c", code, backwards],
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "LC_ALL": "C"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == id_of()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_have_no_form(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"fps": number})


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=4))
def test_a_derived_seed_is_in_range_and_stable(fields: dict[str, Any]) -> None:
    seed = derive_seed(fields)
    assert 0 <= seed < 2**32
    assert derive_seed(dict(reversed(fields.items()))) == seed
