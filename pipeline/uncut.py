"""`refuse_cuts`: a text that a model's tokenizer would cut is refused, rather than read in part.

Every family's blocks ask their tokenizer for so many tokens at most, and what comes after those is
lost without a word: the clip shows nothing of it.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from pipeline.errors import UnfitRequestError

SHOWN_CHARS = 40


def refuse_cuts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have calls of a tokenizer that would cut a text raise UnfitRequestError instead."""
    kind: Any = type(tokenizer)
    tokenizer.__class__ = type(kind.__name__, (_Uncut, kind), {})


class _Uncut:
    """Before a tokenizer: its chat templates come by here as well."""

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        call = cast(Any, super()).__call__
        if kwargs.get("truncation"):
            bare: Any = {**kwargs, "padding": False, "return_tensors": None, "verbose": False}
            texts = [text] if isinstance(text, str) else text
            cut = call(texts, *args, **bare)["input_ids"]
            whole = call(texts, *args, **{**bare, "truncation": False, "max_length": None})
            for read, all_ids in zip(cut, whole["input_ids"], strict=True):
                if len(all_ids) > len(read):
                    end = cast(Any, self).decode(read, skip_special_tokens=True)[-SHOWN_CHARS:]
                    raise UnfitRequestError(
                        "prompt_too_long",
                        f"a prompt or negative prompt of {len(all_ids)} tokens, of which the model "
                        f"reads {len(read)}, up to …{end!r}; shorten it",
                    )
        return call(text, *args, **kwargs)
