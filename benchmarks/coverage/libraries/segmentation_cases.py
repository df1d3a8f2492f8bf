"""segmentation_models_pytorch: every architecture, and encoders of several kinds."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from torch import nn

from benchmarks.coverage.case import Case, images

ENCODERS = ("mobilenet_v2", "efficientnet-b0", "mit_b0", "tu-mobilenetv3_small_050")
FIXED = ("DPT",)


def names() -> list[str]:
    """Architectures with the smallest encoder, then U-Net with other encoders."""
    architectures = sorted(model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values())
    return [*architectures, *(f"Unet, {encoder}" for encoder in ENCODERS)]


def case(name: str) -> Case:
    """One model for three classes."""
    architecture, _, encoder = name.partition(", ")

    def build() -> nn.Module:
        kind = getattr(smp, architecture)
        if architecture in FIXED:
            model: nn.Module = kind("tu-vit_tiny_patch16_224.augreg_in21k", encoder_weights=None,
                                    classes=3, dynamic_img_size=True)  # fmt: skip
        elif architecture == "Segformer":
            model = kind("mit_b0", encoder_weights=None, classes=3)
        else:
            model = kind(encoder or "resnet18", encoder_weights=None, classes=3)
        return model

    # PAN pools the last feature map three times.
    size = 224 if architecture in FIXED else 128 if architecture == "PAN" else 64
    return Case(name, build, images(size, other=256 if size > 64 else 96))
