"""From defaults, recipe, file and flags to settings; each of these goes over the one before.

Settings by name, the reference's and ours. Flags and ``--config`` override them.

Source of ``st3-*``: the paper's public code, github.com/vanderschuea/stthree at 6e31ca1,
``configs/*.toml`` and ``stthree/trainmodules/``. Where our loop differs, the line says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from st3fx.errors import TrainError, suggest
from st3fx.training.folder import RunFolder
from st3fx.training.settings import RESUMABLE, Settings, check, from_dict, read_run, read_toml

# A training of few epochs, up to 95 % sparsity. Found on ResNet-20 and Fashion-MNIST (two epochs,
# benchmarks/leaderboard.py): the sparsity may rise until late, because there is little time for
# weights to find their places, and twice the reference's learning rate moves them further.
_SHORT: dict[str, Any] = {
    "method": "st3",
    "sparsity": 0.9,
    "ramp": (0.03, 0.8),
    "opt": "sgd",
    "lr": 0.2,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "norm_weight_decay": 0.0,
    "bias_weight_decay": 0.0,
    "sched": "cosine",
    "warmup_epochs": 0.2,
    "clip_grad": 3.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    # configs/cifar10.toml (cifar100.toml has the same numbers): ResNet-20 and WideResNet.
    "st3-cifar": {
        "data": "cifar10",
        "method": "st3",
        "sparsity": 0.9,
        "ramp": (5 / 160, 80 / 160),  # start_epoch = 5, end_epoch = 80 of n_epochs = 160, power = 3
        "epochs": 160,
        "batch_size": 128,
        "opt": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,  # its config does not set it
        "weight_decay": 1e-4,
        # Its optimizer has a second group without decay: all but the weights of convolutions and
        # the classifier.
        "norm_weight_decay": 0.0,
        "bias_weight_decay": 0.0,
        "sched": "multistep",
        "milestones": (80, 120),
        "lr_gamma": 0.1,
        "clip_grad": 3.0,  # gradient_clip_val
        "bn_recalibrate": 0,  # it evaluates with the statistics of training
        # Not taken over: it trains on 45,000 of the 50,000 images and picks the best epoch after
        # the 81st on the other 5,000; here all 50,000 train and the last epoch is what is kept.
        # It pads with edge pixels before the random crop; what the data set here does is its own.
    },
    # configs/imagenet.toml: ResNet-50.
    "st3-imagenet": {
        "data": "imagefolder",
        "method": "st3",
        "sparsity": 0.9,
        "ramp": (5 / 100, 50 / 100),  # start_epoch = 5, end_epoch = 50 of n_epochs = 100, power = 3
        "epochs": 100,
        "batch_size": 512,  # over all processes there; here it is per process
        "image_size": 224,
        "opt": "sgd",
        "lr": 0.2,
        "momentum": 0.875,
        "nesterov": False,
        "weight_decay": 5e-5,
        "norm_weight_decay": 0.0,
        "bias_weight_decay": 0.0,
        "sched": "cosine",  # its CosineLR moves once per epoch, ours with every step
        "warmup_epochs": 5,  # likewise
        "label_smoothing": 0.1,
        "clip_grad": 3.0,
        "bn_recalibrate": 0,
        "precision": "fp16",  # `precision = 16`
    },
    "short": _SHORT,
    # Beyond 95 %: in the same trials ST-3 gave 80.95 % top-1 at 99 % sparsity, Feather 85.24 %.
    # ST-3 scales up what is left of a channel, the more the less it is; Feather does not.
    "short-sparse": {**_SHORT, "method": "feather", "sparsity": 0.98},
}
"""Name -> settings that differ from the defaults, or that the reference states."""


def resolve(flags: Mapping[str, Any], config: str | Path | None = None) -> Settings:
    """The settings of a new run.

    Args:
        flags: What was said on the command line, by the settings' names.
        config: A TOML file.

    Raises:
        TrainError: For an unknown recipe, an unknown setting in the file, or a value that does not
            fit.
    """
    written = read_toml(config) if config is not None else {}
    recipe = flags.get("recipe", written.get("recipe"))
    check(next(field for field in fields(Settings) if field.name == "recipe"), recipe)
    if recipe is not None and recipe not in RECIPES:
        close = suggest(str(recipe), list(RECIPES)) or f"; there are {', '.join(RECIPES)}"
        raise TrainError(f"no recipe {recipe!r}{close}")
    if config is not None:
        from_dict({"spec": "", **_basis(recipe), **written}, str(config))
    return from_dict({**_basis(recipe), **written, **flags}, "settings")


def resume(folder: RunFolder, flags: Mapping[str, Any], *, accepted: bool = False) -> Settings:
    """The settings of a run that goes on.

    Args:
        folder: Of the run.
        flags: What was said on the command line: only what the weights so far do not depend on may
            differ.
        accepted: Whether a settings file that was changed is taken as it is.

    Raises:
        TrainError: When a flag contradicts the run, or its settings cannot be read.
    """
    written = read_run(folder.settings, accepted=accepted)
    settings = _found(written, folder.path)
    given = from_dict({**settings.to_dict(), **flags}, "settings")
    for name in flags:
        then, now = getattr(written, name), getattr(given, name)
        if name not in RESUMABLE and then != now and not _same(getattr(settings, name), now):
            raise TrainError(
                f"{folder.path} was started with {name} = {then!r}, which --resume cannot change "
                f"to {now!r}: leave the flag out, or start anew in another --output-dir"
            )
    return given


def lasting(settings: Settings) -> Settings:
    """Settings with which a run can go on from any folder.

    Paths stay as they are where the run's own path says what they are relative to: so the run may
    move together with them.
    """
    if _is_below(str(settings.output_dir)):
        return settings
    return _located(settings, Path.cwd(), always=True)


def _found(settings: Settings, folder: Path) -> Settings:
    """Settings of a run with the paths that are there from where the run was started alone.

    Its folder ends in the ``output_dir`` that was relative to that place.
    """
    parts = Path(str(settings.output_dir)).parts
    place = folder.resolve()
    if not _is_below(str(settings.output_dir)) or place.parts[-len(parts) :] != parts:
        return settings
    return _located(settings, Path(*place.parts[: -len(parts)]), always=False)


def _is_below(path: str) -> bool:
    """Whether a path names something in the folder that one is in."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts and bool(Path(path).parts)


def _located(settings: Settings, base: Path, *, always: bool) -> Settings:
    """Paths relative to ``base`` as absolute ones; those that are found from here only ``always``.

    A SPEC or a data set may name something in its file: ``model.py:build``.
    """
    changed: dict[str, Any] = {}
    for name in ("spec", "weights", "data", "data_path"):
        value = getattr(settings, name)
        path = None if not value or Path(value).is_absolute() else _path_in(value, base)
        if path is not None and (always or not Path(path).exists()):
            changed[name] = str(base / value)
    return replace(settings, **changed)


def _path_in(value: str, base: Path) -> str | None:
    """The part of a setting that is a path below ``base``, if it is one."""
    file = value.rpartition(":")[0]
    if file and (base / file).is_file():
        return file
    from st3fx.data import DATASETS  # noqa: PLC0415 (torch, which --help does not need)

    return value if value not in DATASETS and (base / value).exists() else None


def _same(then: Any, now: Any) -> bool:
    """Whether two texts name the same file, and the same in it."""
    if not (isinstance(then, str) and isinstance(now, str)):
        return False
    path = now.rpartition(":")[0]
    there = Path(now).exists() or (path != "" and Path(path).is_file())
    return there and Path(then).resolve() == Path(now).resolve()


def _basis(recipe: str | None) -> dict[str, Any]:
    return RECIPES[recipe] if recipe is not None else {}
