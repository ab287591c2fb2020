"""The tokenizer: a byte-level BPE learnt from captions, so that any script can be written.

`PreTrainedTokenizerFast` loads it with no code of ours. transformers 5 writes that class under
another name in the files, which older readers don't know: `save_tokenizer` mends it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from pipeline.tiny.captions import paraphrase, plain
from pipeline.tiny.models import VOCABULARY
from pipeline.tiny.scenes import draw_scene

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
LONGEST = 512
"""Tokens that the pipelines pad a prompt to."""


def build_tokenizer(captions: int = 6000, seed: int = 5) -> PreTrainedTokenizerFast:
    """A tokenizer of `VOCABULARY` tokens; pad is 0 and the end, put after each text, is 1."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, keep_out=None) for _ in range(captions)]
    texts = [plain(s) for s in scenes[::4]] + [paraphrase(rng, s) for s in scenes]
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, bpe.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=LONGEST,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files into `folder`, the class by the name that all readers know."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
