"""Texts that a tokenizer would cut."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UnfitRequestError
from pipeline.uncut import refuse_cuts
from tests.support.families.tokenizers import qwen_tokenizer, t5_tokenizer

CUT: Any = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}


@pytest.mark.parametrize("limit", [{"max_length": 12}, {}])
def test_what_fits_is_read_as_before_and_one_token_more_is_refused(limit: dict[str, int]) -> None:
    plain, whole = t5_tokenizer(), t5_tokenizer()
    refuse_cuts(whole)
    longest = limit.get("max_length", plain.model_max_length) - 2  # its first space, and the end
    fits = "a" * (longest - 1) + "z"
    assert type(whole).__name__ == type(plain).__name__
    for text in (fits, ["b", fits]):
        ids = whole(text, **CUT, **limit).input_ids
        assert ids.tolist() == plain(text, **CUT, **limit).input_ids.tolist()
    for text in (fits + "b", ["b", fits + "b"]):
        with pytest.raises(UnfitRequestError) as refused:
            whole(text, **CUT, **limit)
        said = f"of {longest + 3} tokens, of which the model reads {longest + 2}, up to …'"
        assert said in str(refused.value)
        assert "aaz'; shorten it" in str(refused.value)
        assert len(whole(text).input_ids) == len(plain(text).input_ids), "nothing is cut here"


def test_a_chat_is_read_whole_too() -> None:
    whole = qwen_tokenizer()
    refuse_cuts(whole)
    chat = [{"role": "user", "content": "a red bottle"}]
    asked: Any = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, **CUT}
    assert whole.apply_chat_template([chat], max_length=60, **asked).input_ids.shape == (1, 60)
    with pytest.raises(UnfitRequestError, match="of which the model reads 30"):
        whole.apply_chat_template([chat], max_length=30, **asked)
