"""Models by name from st3fx, torchvision and timm, with random weights: nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from st3fx.errors import SpecError, describe, suggest

Library = Literal["st3fx", "torchvision", "timm"]
"""Where a model is known by name."""


def from_library(
    library: Library,
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """The model that ``library`` calls ``name``.

    Args:
        library: Where it is from.
        name: As the library lists it.
        num_classes: Outputs; ``None`` for the library's default.
        in_channels: Channels of the input; ``None`` for the library's default.
        image_size: Height and width in pixels, for models of st3fx that are built for one size.

    Raises:
        SpecError: When the library has no such model or cannot build it.
    """
    if library == "torchvision":
        return from_torchvision(name, num_classes, in_channels)
    if library == "timm":
        return from_timm(name, num_classes, in_channels)
    return from_st3fx(name, num_classes, in_channels, image_size)


def example_inputs(
    library: Library, name: str, in_channels: int | None = None, image_size: int | None = None
) -> Tensor | None:
    """Two images of noise for a model of st3fx; ``None`` for other libraries' models.

    Args:
        library: Where the model is from.
        name: As for :func:`from_library`.
        in_channels: ``None`` for the model's default.
        image_size: ``None`` for the model's default, 32 where it takes any size.

    Returns:
        float32, 2 × channels × height × width.

    Raises:
        SpecError: When st3fx has no such model.
    """
    if library != "st3fx":
        return None
    defaults = {key: p.default for key, p in inspect.signature(_reference(name)).parameters.items()}
    size = image_size or defaults.get("image_size", 32)
    return torch.randn(2, in_channels or defaults["in_channels"], size, size)


def from_st3fx(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """The reference model called ``name``, e.g. ``resnet20``; ``-`` stands for ``_`` too.

    Args:
        name: A name in ``st3fx.models.MODELS``.
        num_classes: Outputs; ``None`` for the model's default.
        in_channels: Channels of the input; ``None`` for the model's default.
        image_size: Height and width in pixels, for models that are built for one size.

    Raises:
        SpecError: When st3fx has no such model or cannot build it.
    """
    builder = _reference(name)
    settings = _given(num_classes=num_classes, in_channels=in_channels)
    if "image_size" in inspect.signature(builder).parameters:
        settings |= _given(image_size=image_size)
    return _build("st3fx", name, builder, settings)


def from_torchvision(
    name: str, num_classes: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """The torchvision model called ``name``, e.g. ``resnet50``.

    Args:
        name: As ``torchvision.models.list_models`` lists it.
        num_classes: Outputs; ``None`` for torchvision's default.
        in_channels: 3 or ``None``: torchvision's models take nothing else.

    Raises:
        SpecError: When torchvision has no such model or cannot build it.
    """
    from torchvision import models  # noqa: PLC0415 (seconds; only this kind of SPEC needs it)

    try:
        builder = models.get_model_builder(name)
    except ValueError as error:
        close = suggest(name, models.list_models())
        raise SpecError(f"torchvision has no model {name!r}{close}") from error
    if in_channels not in (None, 3):
        raise SpecError(
            f"torchvision:{name} takes images of 3 channels, not {in_channels}; repeat a grey "
            "image's with --channels 3, or take a model from st3fx or timm"
        )
    accepted = inspect.signature(builder).parameters
    settings: dict[str, Any] = {"weights": None, **_given(num_classes=num_classes)}
    if "weights_backbone" in accepted:
        settings["weights_backbone"] = None
    if "init_weights" in accepted:
        # What these builders do anyway, without their warning that the default will change.
        settings["init_weights"] = True
    return _build("torchvision", name, builder, settings)


def from_timm(
    name: str, num_classes: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """The timm model called ``name``, e.g. ``convnext_tiny``.

    Args:
        name: As ``timm.list_models`` lists it.
        num_classes: Outputs; ``None`` for timm's default.
        in_channels: Channels of the input; ``None`` for timm's default.

    Raises:
        SpecError: When timm is not installed, has no such model or cannot build it.
    """
    try:
        import timm  # noqa: PLC0415 (an optional package)
    except ImportError as error:
        raise SpecError(f"timm:{name} needs timm, which is not installed: pip install timm") from (
            error
        )
    if not timm.is_model(name):
        raise SpecError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    settings = {
        "model_name": name,
        "pretrained": False,
        **_given(num_classes=num_classes, in_chans=in_channels),
    }
    return _build("timm", name, timm.create_model, settings)


def _reference(name: str) -> Callable[..., nn.Module]:
    from st3fx.models import MODELS  # noqa: PLC0415 (only this kind of SPEC needs it)

    key = name.replace("-", "_")
    if key not in MODELS:
        close = suggest(key, list(MODELS)) or f"; there are {', '.join(MODELS)}"
        raise SpecError(f"st3fx has no model {name!r}{close}")
    return MODELS[key]


def _given(**settings: int | None) -> dict[str, Any]:
    """Those that are not ``None``: the rest is left to the builder."""
    return {name: value for name, value in settings.items() if value is not None}


def _build(
    library: str, name: str, builder: Callable[..., Any], settings: dict[str, Any]
) -> nn.Module:
    try:
        model: nn.Module = builder(**settings)
    except Exception as error:
        raise SpecError(f"{library} cannot build {name!r}: {describe(error)}") from error
    return model
