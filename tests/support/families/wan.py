"""Wan 2.1 and 2.2, Wan VACE and Wan image-to-video, tiny.

The VAE keeps the real factors (8 in space, 4 in time) and 16 channels: a denoise stage has no
VAE to read them from, and diffusers then takes these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.families.base import Family, classic_frames, randomize
from tests.support.families.tokenizers import t5_tokenizer

TEXT_DIM = 32
IMAGE_DIM = 32
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def text_encoder(seed: int) -> Any:
    """Return a UMT5 encoder for the T5 tokenizer's pieces."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=256, d_model=TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return randomize(UMT5EncoderModel(config), seed)


def vae(seed: int) -> Any:
    """Return a Wan VAE of the real factors and few channels."""
    from diffusers import AutoencoderKLWan

    return randomize(AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1), seed)


def scheduler() -> Any:
    """Return Wan's own scheduler, which keeps a history of steps."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def parts() -> dict[str, Any]:
    """Return what all Wan pipelines share."""
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": text_encoder(1),
        "vae": vae(2),
        "scheduler": scheduler(),
    }


def build_wan21(folder: Path) -> None:
    """Write a Wan 2.1 text-to-video checkpoint."""
    from diffusers import WanPipeline, WanTransformer3DModel

    transformer = randomize(WanTransformer3DModel(**TRANSFORMER), 3)
    WanPipeline(**parts(), transformer=transformer).save_pretrained(folder)


def build_wan22(folder: Path) -> None:
    """Write a Wan 2.2 text-to-video checkpoint: two experts, parted at 0.875."""
    from diffusers import WanPipeline, WanTransformer3DModel

    high = randomize(WanTransformer3DModel(**TRANSFORMER), 3)
    low = randomize(WanTransformer3DModel(**TRANSFORMER), 4)
    pipe = WanPipeline(**parts(), transformer=high, transformer_2=low, boundary_ratio=0.875)
    pipe.save_pretrained(folder)


def build_vace(folder: Path) -> None:
    """Write a Wan 2.1 VACE checkpoint: one expert, two control layers.

    Not the eight that diffusers takes where it has no transformer at hand: an encode stage must
    read their number from the checkpoint.
    """
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel(**TRANSFORMER, vace_layers=[0, 1], vace_in_channels=96)
    randomize(transformer, 3)
    WanVACEPipeline(**parts(), transformer=transformer).save_pretrained(folder)


def build_i2v(folder: Path) -> None:
    """Write a Wan 2.1 image-to-video checkpoint, with its CLIP image encoder."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    shape = {**TRANSFORMER, "in_channels": 36, "image_dim": IMAGE_DIM, "added_kv_proj_dim": 48}
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    pipe = WanImageToVideoPipeline(
        **parts(),
        transformer=randomize(WanTransformer3DModel(**shape), 3),
        image_encoder=randomize(CLIPVisionModel(config), 5),
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    pipe.save_pretrained(folder)


def first_frame() -> dict[str, Any]:
    """Return a picture of 64 by 64, two crossing ramps as the first frame."""
    from PIL import Image

    ramp = Image.linear_gradient("L").resize((64, 64))
    return {"image": Image.merge("RGB", [ramp, ramp.rotate(90), ramp.rotate(180)])}


CLIP: dict[str, Any] = {
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "size_multiple": 16,
    "frame_multiple": 4,
    "fps": 16.0,
    "classic": classic_frames,
}

WAN_FAMILIES = (
    Family(name="wan21", build=build_wan21, **CLIP),
    Family(name="wan22", build=build_wan22, **CLIP),
    Family(
        name="wan_vace",
        build=build_vace,
        **CLIP,
        model={"blocks": "Wan22VaceBlocks", "configs": {"boundary_ratio": 0.0}},
    ),
    Family(name="wan_i2v", build=build_i2v, **CLIP, inputs=first_frame),
)
