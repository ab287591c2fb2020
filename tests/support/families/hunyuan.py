"""HunyuanVideo 1.5, tiny: two text encoders, the second for quoted text in the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.families.base import Family, randomize
from tests.support.families.tokenizers import byt5_tokenizer, qwen_tokenizer

TEXT_DIM = 32
GLYPH_DIM = 24
LATENTS = 8


def text_encoder(seed: int) -> Any:
    """Return a Qwen 2.5 VL text model; the pipeline takes the hidden states before the last two."""
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=264,
        hidden_size=TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 2]},
    )
    return randomize(Qwen2_5_VLTextModel(config), seed)


def glyph_encoder(seed: int) -> Any:
    """Return the T5 encoder that reads quoted text byte by byte."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=384, d_model=GLYPH_DIM, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    return randomize(T5EncoderModel(config), seed)


def vae(seed: int) -> Any:
    """Return a VAE of the real factors (16 in space, 4 in time) and few channels."""
    from diffusers import AutoencoderKLHunyuanVideo15

    model = AutoencoderKLHunyuanVideo15(
        latent_channels=LATENTS, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    )
    return randomize(model, seed)


def build(folder: Path) -> None:
    """Write a HunyuanVideo 1.5 text-to-video checkpoint."""
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )

    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=2 * LATENTS + 1,
        out_channels=LATENTS,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_DIM,
        text_embed_2_dim=GLYPH_DIM,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        task_type="t2v",
    )
    pipe = HunyuanVideo15Pipeline(
        text_encoder=text_encoder(1),
        tokenizer=qwen_tokenizer(),
        transformer=randomize(transformer, 3, gain=2.0),
        vae=vae(2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=glyph_encoder(9),
        tokenizer_2=byt5_tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )
    pipe.save_pretrained(folder)


def classic(folder: Path, call: dict[str, Any]) -> Any:
    """Render with the classic pipeline, which takes its guidance as a component too."""
    import torch
    from diffusers import HunyuanVideo15Pipeline

    pipe = HunyuanVideo15Pipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.guider = pipe.guider.new(guidance_scale=call.pop("guidance_scale"))
    return pipe(**call, output_type="np").frames[0]


HUNYUAN = Family(
    name="hunyuan_video_15",
    build=build,
    width=64,
    height=64,
    num_frames=9,
    num_inference_steps=2,
    guidance_scale=3.0,
    size_multiple=16,
    frame_multiple=4,
    fps=24.0,
    model={"blocks": "HunyuanVideo15AutoBlocks"},
    classic=classic,
)
