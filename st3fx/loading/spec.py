"""Turns a SPEC, the text that names a model, into the model.

model.py                    build_model() in it, or its only model class without arguments
model.py:factory            that callable (or model) in the file
st3fx:resnet20              a reference model of st3fx.models, random weights
torchvision:resnet50        a torchvision model, random weights
timm:convnext_tiny          a timm model, random weights
package.module:callable     from an importable module; the working directory is importable
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from torch import nn

from st3fx.errors import SpecError, suggest
from st3fx.loading import factory as factories
from st3fx.loading import zoo
from st3fx.loading.beside import locate, watch
from st3fx.loading.factory import import_file, prepend_to_path, user_code
from st3fx.loading.trust import MODEL, USER, Permit
from st3fx.modules.state import preserved_rng, seed_everything

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"


@dataclass(frozen=True)
class Spec:
    """A SPEC taken apart.

    Attributes:
        kind: Which of the forms it is.
        target: The file, the module, or the name in the library.
        factory: What to call in the file or module; ``None`` lets the file decide.
    """

    kind: Literal["file", "module", zoo.Library]
    target: str
    factory: str | None = None

    @property
    def name(self) -> str:
        """A short name for what is written about it: ``model``, ``model-tiny``, ``resnet50``."""
        stem = Path(self.target).stem if self.kind == "file" else self.target
        text = f"{stem}-{self.factory}" if self.factory else stem
        return re.sub(r"[^\w.-]+", "-", text)

    def __str__(self) -> str:
        """The SPEC as it is written on the command line."""
        if self.kind in get_args(zoo.Library):
            return f"{self.kind}:{self.target}"
        return f"{self.target}:{self.factory}" if self.factory else self.target


@dataclass(frozen=True)
class LoadedSpec:
    """A model with where it came from.

    Attributes:
        spec: The SPEC.
        model: The model, freshly built.
        example_inputs: What ``example_inputs()`` beside the model gives; of reference models two
            images of noise; ``None`` without either.
        source: The file that was run, absolute; ``None`` for library models.
        sha256: Of that file's content, in hexadecimal.
    """

    spec: Spec
    model: nn.Module
    example_inputs: Any = None
    source: Path | None = None
    sha256: str | None = None


def parse_spec(text: str) -> Spec:
    """Take a SPEC apart. Touches files only to tell a path from a module.

    Raises:
        SpecError: When it has none of the forms.
    """
    library, _, name = text.partition(":")
    for kind in get_args(zoo.Library):
        if library == kind and name:
            return Spec(kind, name)
    file = re.fullmatch(rf"(.+?\.py)(?::({_DOTTED}))?", text)
    if file:
        return Spec("file", file[1], file[2])
    if "/" in text or (text and Path(text).exists()):
        return Spec("file", text)
    module = re.fullmatch(rf"({_DOTTED}):({_DOTTED})", text)
    if module:
        return Spec("module", module[1], module[2])
    raise SpecError(
        f"{text!r} is not a SPEC: give model.py, model.py:factory, st3fx:NAME, torchvision:NAME, "
        "timm:NAME or package.module:callable"
    )


def load_spec(
    spec: str | Spec,
    *,
    seed: int = 0,
    with_inputs: bool = True,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    permit: Permit = USER,
) -> LoadedSpec:
    """Build the model that a SPEC names.

    Args:
        spec: One of the forms in this module's docstring.
        seed: For the generators of torch, random and NumPy while the user's code runs, so that the
            same SPEC gives the same weights. They are set back afterwards.
        with_inputs: Whether ``example_inputs()`` is called where the file has one, and a reference
            model's example is made.
        num_classes: Outputs of a library model; ``None`` for the library's default. A user's own
            code is not given it, nor the two below.
        in_channels: Channels of a library model's input.
        image_size: Height and width in pixels that a reference model is built for. Those that
            take any size have it in their example alone.
        permit: On whose word code runs.

    Raises:
        SpecError: When there is no such model or it cannot be built. Where the user's own code
            raised, its exception is the cause.
        TrustError: When data names code that is not trusted.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    with preserved_rng():
        seed_everything(seed)
        kind, name = parsed.kind, parsed.target
        if kind != "file" and kind != "module":  # noqa: PLR1714 (mypy narrows by this form)
            model = zoo.from_library(kind, name, num_classes, in_channels, image_size)
            if not with_inputs:
                return LoadedSpec(parsed, model)
            # After the weights, so that these are the same without an example.
            example = zoo.example_inputs(kind, name, in_channels, image_size)
            return LoadedSpec(parsed, model, example)
        module, path, source = import_spec(parsed, permit)
        return LoadedSpec(
            spec=parsed,
            model=factories.build(module, parsed.factory, parsed.target),
            example_inputs=factories.example_inputs(module, parsed.target) if with_inputs else None,
            source=path,
            sha256=hashlib.sha256(source).hexdigest() if source is not None else None,
        )


def import_spec(
    spec: Spec, permit: Permit = USER, use: str = MODEL
) -> tuple[ModuleType, Path | None, bytes | None]:
    """Import the module of a SPEC that names a file or a module of the user's.

    Args:
        spec: Names the file or the module.
        permit: On whose word it runs, with the modules that it imports from its folder.
        use: What for: ``MODEL`` or ``DATA``.

    Returns:
        The module, with path and content of its file; a module without one has neither.

    Raises:
        SpecError: When there is no such module, or its code raises.
        TrustError: When data names it and it is not trusted. Nothing of it has run then.
    """
    use = f"{use}:{spec.factory or ''}"
    if spec.kind == "file":
        path, source = _read(spec.target)
        permit.check(path, source, use)
        watch(path.parent, permit, str(path))
        return import_file(path, source, spec.target), path, source
    top = spec.target.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__main__":
        raise SpecError(
            f"{spec}: {top} is a part of Python itself and holds no model; a file of that name is "
            f"{spec.target.replace('.', '/')}.py:{spec.factory}"
        )
    code = _read_module(locate(spec.target))
    if not permit.is_free:
        if code is None:
            raise permit.refuse(str(spec))
        permit.check(*code, use)
    here = Path.cwd()
    if permit.is_free or code is None or code[0].is_relative_to(here):
        prepend_to_path(here)
    watch(here, permit, "" if code is None else str(code[0]), top)
    module = _import_module(spec.target)
    origin = module.__file__
    ran = _read_module(None if origin is None else Path(origin))
    if ran is not None and permit.is_free:
        permit.check(*ran, use)
    elif not permit.is_free and ran != code:  # another of that name was there already
        raise permit.refuse(str(spec))
    return (module, *ran) if ran is not None else (module, None, None)


def _read_module(origin: Path | None) -> tuple[Path, bytes] | None:
    return _read(str(origin)) if origin is not None and origin.suffix == ".py" else None


_WEIGHTS = frozenset((".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt"))
"""Ends of files that people give in a model's place: weights, and the index of their shards."""


def _read(text: str) -> tuple[Path, bytes]:
    """Absolute path and content of a Python file."""
    path = Path(text)
    if path.is_dir():
        raise SpecError(f"{text} is a folder: name the Python file in it that builds the model")
    if not path.exists():
        beside = path.parent.glob("*.py") if path.parent.is_dir() else ()
        raise SpecError(f"no file {text}{suggest(path.name, [file.name for file in beside])}")
    if path.suffix != ".py":
        weights = f": weights go with one, as --weights {path.name}"
        more = weights if path.suffix in _WEIGHTS else ""
        raise SpecError(f"{text} is not a Python file (.py) that builds a model{more}")
    if not path.is_file():
        raise SpecError(f"{text} is no regular file")
    try:
        # What is read is what the resolved path holds, whatever a link on the way becomes.
        path = path.resolve(strict=True)
        return path, path.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read {text}: {error.strerror}") from error


def _import_module(name: str) -> ModuleType:
    """The module called ``name``, looked for in the working directory first."""
    try:
        with user_code(name):
            return importlib.import_module(name)
    except SpecError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        # The module itself, or a package above it: not something that the user's code imports.
        if missing and (name == missing or name.startswith(f"{missing}.")):
            raise SpecError(
                f"no module {name!r} in the working directory or installed; for a file, write "
                "path/to/model.py:factory"
            ) from None
        raise
