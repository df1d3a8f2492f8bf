"""The model that a run trains: from a SPEC, with the data's shape, or from a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from st3fx import methods
from st3fx.data import Data, DataSettings
from st3fx.errors import InputError, TrainError
from st3fx.files.bundle import MANIFEST, read_bundle
from st3fx.files.manifest import Recipe
from st3fx.loading.spec import parse_spec
from st3fx.training.method import adjusted, make_method
from st3fx.training.settings import Settings
from st3fx.verbs.workflow import convert_spec, load_bundle

_OF_THE_CONVERSION = (
    "weights", "inputs", "include", "exclude", "skip_depthwise", "skip_first", "skip_last",
    "include_tied", "keep_zeros",
)  # fmt: skip
"""Settings that a bundle was made with."""


def bundle_recipe(spec: str) -> Recipe | None:
    """How the bundle at ``spec`` was converted; ``None`` if it is no bundle.

    Raises:
        BundleError: When it is damaged.
    """
    return read_bundle(spec).manifest.recipe if (Path(spec) / MANIFEST).is_file() else None


def data_settings(settings: Settings, bundle: Recipe | None) -> DataSettings:
    """Which data, in a form that the model takes.

    Raises:
        DataError: For a number outside its range.
    """
    spec = parse_spec(settings.spec if bundle is None else bundle.spec)
    # torchvision's models take three channels and nothing else: grey images are repeated.
    channels = settings.channels or (3 if spec.kind == "torchvision" else None)
    return DataSettings(
        name=settings.data,
        path=settings.data_path,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        workers=settings.workers,
        augment=settings.augment,
        channels=channels,
        image_size=settings.image_size,
        seed=settings.seed,
    )


def from_spec(
    settings: Settings, data: Data, steps: int, progress: Callable[[str], None]
) -> tuple[nn.Module, Recipe]:
    """A new model, with as many outputs as the data has classes where it is a library's.

    Args:
        settings: Of the run.
        data: Gives the example input, unless the settings do.
        steps: Optimizer steps of the run.
        progress: Called with the name of each stage as it begins.

    Returns:
        The converted model, and how it was converted.

    Raises:
        TrainError: When the model does not take what the data gives.
        St3fxError: As ``convert_spec``.
    """
    inputs = settings.inputs or _as_text(data.example(2))
    shape = data.input_shape if data.input_shape and len(data.input_shape) == 3 else None
    recipe = Recipe(
        spec=settings.spec,
        method=methods.to_dict(make_method(settings)),
        inputs=inputs,
        total_steps=steps,
        include=settings.include,
        exclude=settings.exclude,
        skip_depthwise=settings.skip_depthwise,
        skip_first=settings.skip_first,
        skip_last=settings.skip_last,
        include_tied=settings.include_tied,
        keep_zeros=settings.keep_zeros,
        seed=settings.seed,
        num_classes=data.num_classes,
        in_channels=shape[0] if shape else None,
        image_size=shape[-1] if shape else None,
        update_every=settings.update_every,
    )
    try:
        converted = convert_spec(recipe, weights=settings.weights, progress=progress)
    except InputError as error:
        raise TrainError(
            f"{error}; {data.name} gives inputs {' and '.join(inputs or ())}, and --channels, "
            "--image-size or another --data change them"
        ) from error
    return converted.model, converted.recipe


def _as_text(example: Any) -> tuple[str, ...] | None:
    """``2x1x28x28:float32`` for each positional argument; ``None`` for keyword arguments."""
    values = example if isinstance(example, tuple | list) else (example,)
    if not all(isinstance(value, Tensor) for value in values):
        return None
    return tuple(
        f"{'x'.join(map(str, v.shape))}:{str(v.dtype).removeprefix('torch.')}" for v in values
    )


def from_bundle(
    settings: Settings, recipe: Recipe, steps: int, progress: Callable[[str], None]
) -> tuple[nn.Module, Recipe]:
    """The model of a bundle, for a run of its own length and sparsity.

    Raises:
        TrainError: When settings contradict the bundle's conversion.
        BundleError: As ``load_bundle``.
    """
    plain = Settings()
    for name in _OF_THE_CONVERSION:
        if getattr(settings, name) != getattr(plain, name):
            raise TrainError(
                f"{settings.spec} is a bundle, which has its own {name}: leave it out, or convert "
                "the model again"
            )
    progress("load")
    method = adjusted(methods.from_dict(recipe.method), settings)
    model = load_bundle(settings.spec)
    plan = dataclasses.replace(model.st3fx_plan, target=method.target)  # type: ignore[type-var]
    model.__dict__.update(
        st3fx_method=method,
        st3fx_plan=plan,
        st3fx_total_steps=steps,
        st3fx_update_every=settings.update_every,
    )
    return model, dataclasses.replace(
        recipe,
        method=methods.to_dict(method),
        total_steps=steps,
        update_every=settings.update_every,
    )
