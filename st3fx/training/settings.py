"""All settings of a training run: one frozen dataclass, which files and flags both spell alike.

Each field carries its help text and its other spellings, so that the command line,
``settings.toml`` and the messages about wrong values are made from this one place.

Settings as TOML: ``tomllib`` reads, this writes. Each setting has its help as a comment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from st3fx.errors import TrainError, quoted, suggest
from st3fx.files.reading import DamageError, Format, build
from st3fx.plan.settings import ConversionSettings, setting

LARGEST = 2**31 - 1
"""Of any setting that is a number: products of two of them, and a power, can still be counted."""


def check(field: dataclasses.Field[Any], value: Any) -> None:
    """Fail unless a value has the field's type and lies in its range.

    Raises:
        TrainError: Naming the field and what is allowed.
    """
    name, allowed = field.name, field.metadata
    try:
        build(value, _kind(name))
    except DamageError as error:
        wanted = _WORDS[str(field.type).removesuffix(" | None")]
        raise TrainError(f"{name} = {value!r}: give {wanted}") from error
    if value is None:
        return
    if allowed["choices"] and value not in allowed["choices"]:
        raise TrainError(f"{name} = {value!r}: give {' or '.join(allowed['choices'])}")
    numbers: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        _check_range(name, number, allowed["least"], allowed["below"])


def _check_range(name: str, value: Any, least: float | None, below: float | None) -> None:
    if least is None:
        return
    if not math.isfinite(value):
        raise TrainError(f"{name} = {value!r}: give a number")
    if value < least or (below is not None and value >= below):
        limit = f" and below {below:g}" if below is not None else ""
        raise TrainError(f"{name} = {value:g}: give {least:g} or more{limit}")
    if value > LARGEST:
        raise TrainError(f"{name} = {value:g}: give {LARGEST:,} or less")


@cache
def _kind(name: str) -> Any:
    """The type of a setting; selectors of a training are globs, which files and flags can have."""
    kind = get_type_hints(Settings)[name]
    return tuple[str, ...] if kind == tuple[Any, ...] else kind


_WORDS = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "tuple[str, ...]": "a list of texts", "tuple[Any, ...]": "a list of texts",
    "tuple[float, ...]": "a list of numbers",
}  # fmt: skip


SECTIONS = ("model", "data", "sparsity", "optimisation", "evaluation", "machine", "run")


@dataclass(frozen=True, kw_only=True)
class _Model:
    """Which model is trained."""

    spec: str = setting("model", "", "The model: a SPEC or a bundle.")
    weights: str | None = setting("model", None, "Weights to start from.")
    inputs: tuple[str, ...] = setting(
        "model", (), "An example input, e.g. 1x3x224x224; by default one from the data.",
        flags="--input",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings(ConversionSettings, _Model):
    """What a run is made of. Values are checked when it is made.

    Raises:
        TrainError: For a value outside its range, naming the setting and what is allowed.
    """

    data: str = setting(
        "data", "fashion-mnist-mini",
        "fashion-mnist-mini, fashion-mnist, cifar10, cifar100, imagefolder, webdataset (tar "
        "shards), huggingface (saved by datasets), or your own "
        "loaders.py:make_loaders.",
    )  # fmt: skip
    data_path: str | None = setting("data", None, "Folder of the data.", free=True)
    batch_size: int = setting("data", 128, "Images per step and process.", least=1,
                               flags="-b --batch-size")  # fmt: skip
    eval_batch_size: int | None = setting(
        "data",
        None,
        "Images per evaluation batch; by default twice those of a training batch.",
        least=1,
        free=True,
    )
    workers: int = setting("data", 0, "Processes that load data, per process.", least=0, free=True,
                            flags="-j --workers")  # fmt: skip
    on_bad_sample: str = setting(
        "data", "stop", "A sample that cannot be read, or does not fit: stop, or leave it out "
        "(skip); training takes the next one in its place.", choices=("stop", "skip"),
    )  # fmt: skip
    augment: bool = setting("data", True, "Shift and mirror the training images.")
    channels: int | None = setting("data", None, "3 repeats grey images for models of colour.",
                                    least=1)  # fmt: skip
    image_size: int | None = setting(
        "data", None, "Side of the images that the model gets, in pixels.", least=1,
        flags="--image-size --img-size --train-crop-size",
    )  # fmt: skip

    method: str | None = setting("sparsity", None, "How weights become sparse.")
    sparsity: float | None = setting(
        "sparsity", None, "Share of the sites' weights that training prunes.",
        flags="--sparsity --target-sparsity", least=0, below=1,
    )  # fmt: skip
    sparsity_of: tuple[str, ...] = setting(
        "sparsity", (), "A target of its own for each weight whose full name matches, e.g. "
        "'layer4.*=0.95'; the others have what is left of --sparsity. Repeatable; the last that "
        "matches counts. A file of st3fx sensitivity --budget gives all of them.",
        metavar="GLOB=S",
    )  # fmt: skip
    budget: str = setting("sparsity", "weights", "What the sparsity is a share of.",
                           choices=("weights", "macs"))  # fmt: skip
    granularity: str | None = setting(
        "sparsity", None,
        "What is pruned together: unstructured, block:4, nm:2:4, channels.",
    )  # fmt: skip
    method_options: tuple[str, ...] = setting(
        "sparsity", (), "A setting of the method's own, e.g. normalize=sigma.",
        flags="--method-option",
    )  # fmt: skip
    ramp: tuple[float, ...] = setting(
        "sparsity", (), "Where the sparsity begins and stops to rise, as shares of the run.",
        least=0,
    )  # fmt: skip
    draw_sparsity: tuple[float, ...] = setting(
        "sparsity", (), "Train each step at a sparsity drawn between these two, for one run that "
        "st3fx sweep takes to all of them; it is evaluated, and ends, at --sparsity, by default "
        "the larger one.", least=0, below=1,
    )  # fmt: skip
    update_every: int = setting("sparsity", 1, "Steps between two thresholds.", least=1)

    recipe: str | None = setting("optimisation", None, "Settings to begin with.")
    epochs: int = setting("optimisation", 10, "Passes over the training data.", least=1)
    opt: str = setting("optimisation", "sgd", "The optimizer.", choices=("sgd", "adamw", "adam"))
    lr: float = setting("optimisation", 0.1, "Peak learning rate.", least=0)
    probability_lr: float = setting(
        "optimisation", 0.006, "Peak learning rate of the probabilities that masks are drawn by; "
        "it follows the same schedule.", least=0,
    )  # fmt: skip
    momentum: float = setting("optimisation", 0.9, "Of SGD.", least=0, below=1)
    nesterov: bool = setting("optimisation", False, "Nesterov's momentum.")
    weight_decay: float = setting("optimisation", 5e-4, "Weight decay.", least=0,
                                   flags="--wd --weight-decay")  # fmt: skip
    norm_weight_decay: float | None = setting(
        "optimisation", None, "Weight decay of normalisation layers; by default as of the others.",
        least=0,
    )  # fmt: skip
    bias_weight_decay: float | None = setting(
        "optimisation", None, "Weight decay of biases; by default as of the others.", least=0
    )
    sched: str = setting("optimisation", "cosine", "How the learning rate falls.",
                          choices=("cosine", "multistep", "constant"),
                          flags="--sched --lr-scheduler")  # fmt: skip
    milestones: tuple[float, ...] = setting(
        "optimisation", (), "Epochs after which multistep multiplies the rate.",
        flags="--milestones --decay-milestones --lr-milestones", least=0,
    )  # fmt: skip
    lr_gamma: float = setting("optimisation", 0.1, "What multistep multiplies by.", least=0,
                               flags="--lr-gamma --decay-rate")  # fmt: skip
    min_lr: float = setting("optimisation", 0.0, "Where cosine ends.", least=0,
                             flags="--min-lr --lr-min")  # fmt: skip
    warmup_epochs: float = setting(
        "optimisation", 0.0, "Epochs in which the learning rate rises linearly.", least=0,
        flags="--warmup-epochs --lr-warmup-epochs",
    )  # fmt: skip
    label_smoothing: float = setting("optimisation", 0.0, "Label smoothing.", least=0, below=1,
                                      flags="--label-smoothing --smoothing")  # fmt: skip
    # The reference clips in all of its configurations, at 3.0. Without it a ResNet-20 in blocks of
    # four fell back to guessing on the ramp to 90 %, at these defaults.
    clip_grad: float = setting("optimisation", 3.0, "Largest norm of the gradient; 0: any.",
                                least=0, flags="--clip-grad --clip-grad-norm")  # fmt: skip
    grad_accum_steps: int = setting("optimisation", 1, "Batches per optimizer step.", least=1)
    model_ema: bool = setting("optimisation", False, "Evaluate and keep averaged weights.")
    model_ema_decay: float = setting("optimisation", 0.9998, "Of the average; smaller at first.",
                                      least=0, below=1)  # fmt: skip
    seed: int = setting("optimisation", 0, "For weights, shuffling and dropout.", least=0)

    bn_recalibrate: int = setting(
        "evaluation", 16, "Training batches to take batch-norm statistics from, before evaluation; "
        "while thresholds rise, those of training lag behind. 0 keeps those of training.", least=0,
    )  # fmt: skip

    precision: str = setting("machine", "no", "Mixed precision; --amp is bf16.",
                              choices=("no", "bf16", "fp16"))  # fmt: skip
    channels_last: bool = setting("machine", False, "Memory format of images and weights.")
    torchcompile: bool = setting("machine", False, "Compile the model with torch.compile.",
                                  flags="--torchcompile --compile")  # fmt: skip
    fsdp: bool = setting("machine", False, "Shard the model over the processes (FSDP2).")
    cudnn_benchmark: bool = setting(
        "machine", False, "Let cuDNN try for the fastest kernels; a resumed run may then differ."
    )

    output_dir: str | None = setting("run", None, "Where the run is written.", free=True,
                                      flags="-o --output-dir --output")  # fmt: skip
    log_interval: int = setting("run", 20, "Steps between two rows of the log.", least=1,
                                 flags="--log-interval --print-freq")  # fmt: skip
    checkpoint_every: int | None = setting(
        "run", None, "Steps between two checkpoints, besides those after each epoch.", least=1,
        free=True,
    )  # fmt: skip
    log_with: tuple[str, ...] = setting(
        "run", (), "Another tracker that Accelerate knows, e.g. wandb.", free=True
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        if self.ramp and not (len(self.ramp) == 2 and self.ramp[0] < self.ramp[1] <= 1):
            raise TrainError(f"ramp = {list(self.ramp)}: give begin and end, 0 ≤ begin < end ≤ 1")
        draw = self.draw_sparsity
        if draw and not (len(draw) == 2 and draw[0] < draw[1]):
            raise TrainError(
                f"draw_sparsity = {list(draw)}: give the least and the largest, e.g. 0.5,0.95"
            )
        if self.sched == "multistep" and not self.milestones:
            raise TrainError("sched = multistep needs milestones: give --milestones EPOCH, e.g. 80")
        if self.warmup_epochs > self.epochs:
            raise TrainError(
                f"warmup_epochs = {self.warmup_epochs:g} is more than epochs = {self.epochs}"
            )
        if self.nesterov and not (self.opt == "sgd" and self.momentum > 0):
            raise TrainError("nesterov needs opt = sgd with a momentum above 0")
        if self.fsdp and self.model_ema:
            raise TrainError("model_ema does not work with fsdp yet: leave one of them out")

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, as plain values."""
        return dataclasses.asdict(self)


FREE = {field.name for field in dataclasses.fields(Settings) if field.metadata["free"]}
"""Names of the settings that may change when a run is resumed."""

RESUMABLE = FREE | {"on_bad_sample"}
"""And those by which a run that stopped goes on, as it says: the weights so far are the same."""


def from_dict(values: Mapping[str, Any], where: str) -> Settings:
    """Settings from plain values.

    Args:
        values: Name -> value; lists stand for tuples.
        where: What they were read from, for messages.

    Raises:
        TrainError: For an unknown name, with the nearest ones, and for a value that does not fit.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in values:
        if name not in known:
            raise TrainError(f"{where} has an unknown setting {name!r}{suggest(name, known)}")
    tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Settings(**tuples)
    except TrainError as error:
        raise TrainError(f"{where}: {error}") from error


FILE = Format(TrainError, "mend the line, or leave the file out", limit=1 << 20)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values in a TOML file; tables are only for the reader's eye and are merged.

    Raises:
        TrainError: When there is no such file, it is not TOML, or has a setting twice.
    """
    if not Path(path).exists():
        raise TrainError(f"no settings file {path}")
    data = FILE.toml(FILE.content(path), path)
    merged: dict[str, Any] = {}
    for key, value in data.items():
        table = value if isinstance(value, dict) else {key: value}
        twice = next((name for name in table if name in merged), None)
        if twice is not None:
            FILE.fail(path, DamageError(f"has {twice!r} twice"))
        merged |= table
    return merged


def read_run(path: Path, *, accepted: bool = False) -> Settings:
    """The settings of a run, as they were written.

    Args:
        path: The file.
        accepted: Whether one that was changed since is taken as it is.

    Raises:
        TrainError: When it was changed, or cannot be read.
    """
    values = read_toml(path)
    settings = from_dict(values, str(path))
    head, _, rest = FILE.content(path).partition(b"\n")
    if not accepted and head != _head(rest):
        raise TrainError(
            f"{path} was damaged or edited after it was written, as its digest says: put it back, "
            f"go on with it by --resume --accept-changes, or train anew by --config {quoted(path)}"
        )
    return settings


_HEAD = "# Written by st3fx train. Read it back with --config, or go on with --resume. Digest: "


def _head(rest: bytes) -> bytes:
    """The first line, with a digest of all others."""
    return f"{_HEAD}{hashlib.sha256(rest).hexdigest()}".encode()


def to_toml(settings: Settings) -> str:
    """All settings that have a value, by section, each under a comment that says what it is."""
    lines = []
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for field in dataclasses.fields(Settings):
            value = getattr(settings, field.name)
            if field.metadata["section"] != section:
                continue
            lines.append(f"# {field.metadata['help']}")
            # TOML has no null: what is not set is shown in a comment.
            if value is None:
                lines.append(f"# {field.name} = (not set)")
            else:
                lines.append(f"{field.name} = {_literal(value)}")
    rest = "\n".join(lines) + "\n"
    return f"{_head(rest.encode()).decode()}\n{rest}"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, float):
        # TOML wants a digit on both sides of the point; repr gives that, but for 1e-05.
        mantissa, mark, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{mark}{exponent}"
    # JSON's strings, numbers and booleans are TOML's too (the DEL character apart).
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
