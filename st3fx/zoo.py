"""Models by name from torchvision and timm, with random weights: nothing is downloaded."""

from __future__ import annotations

import inspect

from torch import nn

from st3fx.errors import SpecError
from st3fx.messages import describe, suggest


def from_torchvision(name: str) -> nn.Module:
    """The torchvision model called ``name``, e.g. ``resnet50``.

    Raises:
        SpecError: When torchvision has no such model or cannot build it.
    """
    from torchvision import models  # noqa: PLC0415 (seconds; only this kind of SPEC needs it)

    try:
        builder = models.get_model_builder(name)
    except ValueError as error:
        close = suggest(name, models.list_models())
        raise SpecError(f"torchvision has no model {name!r}{close}") from error
    accepted = inspect.signature(builder).parameters
    settings: dict[str, object] = {"weights": None}
    if "weights_backbone" in accepted:
        settings["weights_backbone"] = None
    if "init_weights" in accepted:
        # What these builders do anyway, without their warning that the default will change.
        settings["init_weights"] = True
    try:
        model: nn.Module = builder(**settings)
    except Exception as error:
        raise SpecError(f"torchvision cannot build {name!r}: {describe(error)}") from error
    return model


def from_timm(name: str) -> nn.Module:
    """The timm model called ``name``, e.g. ``convnext_tiny``.

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
    try:
        model: nn.Module = timm.create_model(name, pretrained=False)
    except Exception as error:
        raise SpecError(f"timm cannot build {name!r}: {describe(error)}") from error
    return model
