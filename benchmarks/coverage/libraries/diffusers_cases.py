"""diffusers: U-Nets, an autoencoder, a transformer and a ControlNet, all tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiTTransformer2DModel,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UNetSpatioTemporalConditionModel,
    VQModel,
)
from torch import nn

from benchmarks.coverage.case import Call, Case, Inputs, images, normal

_CHANNELS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


def _unconditional() -> Any:
    return UNet2DModel(16, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"), **_CHANNELS)  # fmt: skip


def _conditional() -> Any:
    return UNet2DConditionModel(
        16, down_block_types=_DOWN, up_block_types=_UP, cross_attention_dim=24,
        attention_head_dim=8, **_CHANNELS,
    )  # fmt: skip


def _control() -> Any:
    return ControlNetModel(
        down_block_types=_DOWN, cross_attention_dim=24, attention_head_dim=8,
        conditioning_embedding_out_channels=(8, 16), **_CHANNELS,
    )  # fmt: skip


def _video() -> Any:
    return UNetSpatioTemporalConditionModel(
        16, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=2, addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
    )  # fmt: skip


def _latents(channels: int, *, dense: bool = False) -> Inputs:
    def inputs(batch: int, changed: bool) -> Call:
        side = 24 if changed else 16
        given: dict[str, Any] = {"return_dict": False} if dense else {}
        return (normal(batch, channels, side, side), torch.arange(batch)), given

    return inputs


def _conditioned(batch: int, changed: bool) -> Call:
    (sample, steps), given = _latents(4)(batch, changed)
    return (sample, steps, normal(batch, 9 if changed else 7, 24)), given


def _controlled(batch: int, changed: bool) -> Call:
    args, _ = _conditioned(batch, changed)
    side = args[0].shape[-1] * 2
    return (*args, normal(batch, 3, side, side)), {}


def _frames(batch: int, changed: bool) -> Call:
    side = 24 if changed else 16
    return (normal(batch, 2, 8, side, side), torch.arange(batch), normal(batch, 1, 24),
            normal(batch, 3)), {}  # fmt: skip


def _classes(batch: int, changed: bool) -> Call:
    return (normal(batch, 4, 8, 8),), {
        "timestep": torch.arange(batch),
        "class_labels": torch.arange(batch),
    }


def _signal(batch: int, changed: bool) -> Call:
    return (normal(batch, 14, 64 if changed else 32), torch.arange(batch)), {}


def _vae() -> Any:
    return AutoencoderKL(block_out_channels=(16, 32), norm_num_groups=8, latent_channels=4,
                         down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip


def _dit() -> Any:
    return DiTTransformer2DModel(2, 8, 4, 8, num_layers=2, sample_size=8, norm_num_groups=4,
                                 num_embeds_ada_norm=20)  # fmt: skip


def _unet1d() -> Any:
    return UNet1DModel(
        64, in_channels=14, out_channels=14, block_out_channels=(16, 32), extra_in_channels=32,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), use_timestep_embedding=False,
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"), time_embedding_type="fourier",
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "UNet2DModel": (_unconditional, _latents(3)),
    "UNet2DConditionModel": (_conditional, _conditioned),
    "UNetSpatioTemporalConditionModel": (_video, _frames),
    "UNet1DModel": (_unet1d, _signal),
    "ControlNetModel": (_control, _controlled),
    "AutoencoderKL": (_vae, images(16, other=24)),
    "VQModel": (lambda: VQModel(block_out_channels=(32,), norm_num_groups=8), images(16, other=24)),
    "DiTTransformer2DModel": (_dit, _classes),
}
"""Name -> what builds it, and its inputs."""


def names() -> list[str]:
    """All of them."""
    return list(CASES)


def case(name: str) -> Case:
    """One model."""
    return Case(name, *CASES[name])
