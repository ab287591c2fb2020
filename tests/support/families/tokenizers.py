"""Small real tokenizers: the classes that checkpoints name, over single characters or bytes."""

from __future__ import annotations

from typing import Any

LETTERS = [chr(code) for code in [*range(0x21, 0x7F), *range(0xA1, 0x100)]]


def t5_tokenizer() -> Any:
    """Return a T5 tokenizer of one piece a letter; 256 pieces at most."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    """Return a Gemma tokenizer of bytes; 261 pieces."""
    from transformers import GemmaTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return GemmaTokenizerFast(vocab=vocab, merges=[], model_max_length=1024)


def qwen_tokenizer() -> Any:
    """Return a Qwen 2 tokenizer of bytes, with a chat template; 259 pieces."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2TokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def byt5_tokenizer() -> Any:
    """Return a ByT5 tokenizer, which needs no vocabulary; 384 ids."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()
