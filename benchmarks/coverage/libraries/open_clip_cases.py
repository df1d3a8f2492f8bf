"""open_clip: image and text towers of several kinds, small."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from benchmarks.coverage.case import Call, Case, integers, normal

_TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2,
                         "layers": 2}  # fmt: skip
_VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
_RESNET = {"layers": (1, 1, 1, 1), "width": 8, "head_width": 8, "image_size": 32}
_TIMM = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "", "timm_proj": "linear"}
_COCA = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}

MODELS: dict[str, tuple[type[nn.Module], dict[str, Any], dict[str, Any], int]] = {
    "CLIP, ViT": (CLIP, _VIT, _TEXT, 32),
    "CLIP, ResNet": (CLIP, _RESNET, _TEXT, 32),
    "CustomTextCLIP": (CustomTextCLIP, _VIT, _TEXT, 32),
    "CLIP, timm": (CLIP, _TIMM, _TEXT, 160),
    "CoCa": (CoCa, {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2,
                    "output_tokens": True},
             {**_TEXT, "embed_cls": True, "output_tokens": True}, 32),
}  # fmt: skip
"""Name -> class, image tower, text tower, pixels."""


def names() -> list[str]:
    """All of them."""
    return list(MODELS)


def case(name: str) -> Case:
    """One model, on images and texts."""
    kind, vision, text, size = MODELS[name]

    def build() -> nn.Module:
        settings: dict[str, Any] = {"vision_cfg": vision, "text_cfg": text}
        if kind is CoCa:
            settings["multimodal_cfg"] = {**_COCA, "heads": 2}
        model = kind(embed_dim=32, **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.isfinite().all() or parameter.abs().max() > 1e3:
                    nn.init.normal_(parameter, std=0.1)  # CoCa leaves some as memory was
        return model

    def inputs(batch: int, changed: bool) -> Call:
        return (normal(batch, 3, size, size), integers(100, batch, 12)), {}

    return Case(name, build, inputs)
