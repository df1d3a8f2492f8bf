"""timm: a small model of each family, and more of families that hold several designs."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import _registry
from torch import nn

from benchmarks.coverage.case import Call, Case, normal

MORE = (
    "botnet26t_256", "eca_halonext26ts", "lambda_resnet26t", "sebotnet33ts_256",
    "gernet_s", "repvgg_a0", "mobileone_s0", "bat_resnext26ts", "gcresnet33ts",
    "cs3darknet_s", "cspresnet50", "darknet53", "convnextv2_atto", "convnext_zepto_rms",
    "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "densenetblur121d",
    "mnasnet_small", "mobilenetv2_035", "mixnet_s", "tinynet_e", "spnasnet_100", "fbnetc_100",
    "efficientnetv2_rw_t", "efficientnet_es", "tf_efficientnet_b0", "efficientnet_blur_b0",
    "eva02_tiny_patch14_224", "vit_medium_patch16_rope_reg1_gap_256", "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224", "coatnext_nano_rw_224", "coatnet_rmlp_nano_rw_224", "gmixer_12_224",
    "gmlp_ti16_224", "resmlp_12_224", "poolformer_s12", "poolformerv2_s12", "convformer_s18",
    "lcnet_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
    "mobilenetv4_hybrid_medium", "mobilevitv2_050", "eca_nfnet_l0", "nf_regnet_b0",
    "nf_resnet26", "dm_nfnet_f0", "regnety_002", "regnetz_005", "resnet10t", "seresnext26ts",
    "ecaresnet26t", "resnetrs50", "resnetv2_50x1_bit", "skresnet18", "swinv2_cr_tiny_224",
    "flexivit_small", "vit_tiny_patch16_224", "vit_small_patch32_384", "vit_tiny_r_s16_p8_224",
    "vit_relpos_small_patch16_224", "test_efficientnet", "test_vit", "test_resnet",
)  # fmt: skip
"""Other designs in the files of the families; what this timm does not have is left out."""

SMALL = 64
"""Pixels of an image's side, which is a multiple of all patches and windows but a few."""

LARGER = {"patch14": 98, "gemma4": 96, "inception": 96, "r_s16": 128}
"""Part of a name -> pixels that these take at least, or in multiples."""

SHALLOW = ("aimv2", "beit", "cait", "deepseek", "deit", "eva", "flexivit", "gemma4", "naflexvit",
           "qwen3", "samvit", "vit_")  # fmt: skip
"""Names of transformers of one width, which are built with three blocks: more say nothing new."""


def names() -> list[str]:
    """The smallest model of each file of timm, then the others."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(_registry._model_to_module[name], []).append(name)
    smallest = [min(models, key=_weight_of) for models in families.values()]
    present = set(timm.list_models())
    return [*smallest, *(name for name in MORE if name in present and name not in smallest)]


SIZES = {
    "nano": 0, "pico": 0, "femto": 0, "atto": 0, "zepto": 0, "xxt": 1, "xxs": 1, "xt": 2, "xs": 2,
    "tiny": 3, "_ti": 3, "_t": 3, "_s": 4, "small": 4, "xsmall": 2, "base": 6, "medium": 5,
    "large": 8, "_l": 8, "_m": 6, "huge": 9, "giant": 10, "_xl": 9, "enormous": 11,
}  # fmt: skip


def _weight_of(name: str) -> tuple[float, int, str]:
    """A guess of a model's size from its name, to choose one without building them all."""
    ranks = [rank for part, rank in SIZES.items() if part in name]
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (sum(ranks) / len(ranks) if ranks else 4.5, int(digits[0]) if digits else 0, name)


def _small(name: str) -> int:
    return next((size for part, size in LARGER.items() if part in name), SMALL)


def case(name: str) -> Case:
    """One model, on images as small as it takes them."""
    configuration = timm.get_pretrained_cfg(name)
    assert configuration is not None
    _, full, _ = configuration.input_size
    smallest = configuration.min_input_size[1] if configuration.min_input_size else 0
    size = min(full, max(_small(name), smallest))
    options: dict[str, Any] = {}
    if name.startswith(SHALLOW):  # these take an image size when they are built
        options = {"depth": 3, "img_size": size}
    elif configuration.fixed_input_size:
        size = full

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **options)
        return model

    def inputs(batch: int, changed: bool) -> Call:
        side = size + 32 if changed else size
        return (normal(batch, 3, side, side),), {}

    return Case(name, build, inputs)
