"""From a path to what is there: which kind it is, and what can be done with it next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from st3fx.errors import InspectError, quoted
from st3fx.files.compact import MAGIC, SUFFIX
from st3fx.files.ours import BUNDLE, is_ours
from st3fx.files.reading import DamageError, check_regular
from st3fx.files.shards import INDEX
from st3fx.inspection.converted import (
    WITHOUT_WEIGHTS,
    is_checkpoint,
    look_bundle,
    look_checkpoint,
)
from st3fx.inspection.found import Found, Step
from st3fx.inspection.graph import look_graph
from st3fx.inspection.trained import look_run
from st3fx.inspection.weights import (
    look_compact,
    look_pickled,
    look_safetensors,
    look_shards,
    read_pickled,
)
from st3fx.training.folder import RunFolder

KINDS = (
    "a bundle, the folder of a training, an ONNX file, a .st3w or safetensors file, an index of "
    "shards, or what torch.save wrote"
)


def look(path: str | Path) -> Found:
    """What is at a path. Nothing that it names is run, and no model is built.

    Args:
        path: A bundle, the folder of a training, an ONNX file, a file of weights, an index of
            shards or the folder with it, a checkpoint.

    Raises:
        InspectError: When there is nothing, or nothing that can be looked into, or it is damaged.
        St3fxError: As the reader of the format raises, when it is damaged.
    """
    place = Path(path)
    try:
        found = _look_folder(place) if place.is_dir() else _look_file(place)
    except OSError as error:
        raise InspectError(f"cannot read {place}: {error.strerror or error}") from error
    return dataclasses.replace(found, path=str(path), steps=tuple(_steps(found, place)))


def _look_folder(place: Path) -> Found:
    if RunFolder(place).settings.is_file():
        return look_run(place)
    if any((place / name).is_file() for name in BUNDLE):
        return look_bundle(place)
    if any(place.glob(f"*{INDEX}")):
        return look_shards(place)
    raise InspectError(
        f"{place} is no bundle and no run: it has no {BUNDLE[0]} and no settings.toml, nor shards "
        f"with their index (*{INDEX})"
    )


def _look_file(place: Path) -> Found:
    try:
        check_regular(place)
    except FileNotFoundError:
        raise InspectError(f"no file or folder {place}") from None
    except DamageError as error:
        raise InspectError(f"{place} {error}: give {KINDS}") from error
    if place.name.endswith(INDEX):
        return look_shards(place)
    with place.open("rb") as file:
        head = file.read(16)
    reader = _BY_NAME.get(place.suffix.lower()) or _by_content(place, head)
    return reader(place)


def _look_pickled(place: Path) -> Found:
    if is_ours(place):  # its digest first, and nothing else of one that is damaged
        return look_checkpoint(place)
    content = read_pickled(place)
    return look_checkpoint(place) if is_checkpoint(content) else look_pickled(place, content)


def _look_program(place: Path) -> Found:
    raise InspectError(
        f"{place} is a program of torch.export: torch.export.load({str(place)!r}) reads it"
    )


_BY_NAME: dict[str, Callable[[Path], Found]] = {
    SUFFIX: look_compact,
    ".safetensors": look_safetensors,
    ".onnx": look_graph,
    ".pt2": _look_program,
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _look_pickled),
}


def _by_content(place: Path, head: bytes) -> Callable[[Path], Found]:
    """What reads a file whose name says nothing."""
    if head.startswith(MAGIC):
        return look_compact
    if head.startswith(b"PK\x03\x04"):
        return _look_pickled
    if head[8:9] == b"{":
        return look_safetensors
    if head[:1] in (b"\x08", b"\x72"):  # the version of an ONNX file, or a digest of ours
        return look_graph
    raise InspectError(f"{place} is nothing that is known here: give {KINDS}")


def _steps(found: Found, place: Path) -> Iterator[Step]:
    """What can be done with it next."""
    name = quoted(place)
    if found.kind.startswith("bundle"):
        yield from _of_bundle(found, name)
    elif found.kind.startswith("run"):
        yield from _of_run(found, name)
    elif found.kind.startswith("checkpoint"):
        run = quoted(place.parent.parent)
        yield Step(f"st3fx train --resume {name}", "go on with its training from here")
        yield Step(f"st3fx inspect {run}", "the whole run")
    elif found.kind.startswith("ONNX"):
        yield Step(f"st3fx analyze {name}", "its multiplications, and what its zeros save")
        yield Step(f"st3fx bench {name}", "its latency on this machine")
        if "integers" in found.kind and not found.kernels and found.reached:
            yield Step(f"st3fx export {name} --sparse-kernels", "kernels that skip its zeros")
    elif found.notes and "latent" in found.notes[0]:
        yield Step(
            f"st3fx inspect {quoted(place.parent)}", "the bundle that it is of, if it is one"
        )
    else:
        yield Step(f"st3fx convert model.py --weights {name}", "train its model sparse from here")
        yield Step(f"st3fx analyze model.py --weights {name}", "what its zeros save in its model")
        if found.kind.startswith("weights in"):
            yield Step(
                f"st3fx fold model.st3fx --weights {name} --sparsity 0.5",
                "prune it in its files, by the bundle of a model without weights",
            )
        if found.kind.startswith("compact"):
            yield Step(f"st3fx.load_compact({str(place)!r})", "the state dict, in Python")


def _of_bundle(found: Found, name: str) -> Iterator[Step]:
    if WITHOUT_WEIGHTS in found.notes:
        yield Step(
            f"st3fx fold {name} --weights model.safetensors.index.json --sparsity 0.5",
            "fold the weights of a checkpoint, shard by shard",
        )
        return
    if not found.reached:
        yield Step(f"st3fx train {name}", "train it while its sparsity rises")
        yield Step(f"st3fx fold {name} --sparsity 0.9", "or prune it now, without training")
        return
    yield Step(f"st3fx fold {name}", "its weights for the model's own class")
    yield Step(f"st3fx export {name} --sparse-kernels", "ONNX files, and kernels that skip zeros")
    yield Step(f"st3fx analyze {name}", "its multiplications, layer by layer")
    yield Step(f"st3fx bench {name}", "dense against sparse on this machine")


def _of_run(found: Found, name: str) -> Iterator[Step]:
    if "is over" not in found.progress:
        yield Step(f"st3fx train --resume {name}", "go on with it")
        return
    yield Step(f"st3fx export {name}/model.st3fx --sparse-kernels", "kernels that skip zeros")
    yield Step(f"st3fx quantize {name}", "the model in 8-bit integers")
    yield Step(f"st3fx bench {name}", "dense against sparse on this machine")
    yield Step(f"st3fx report {name}", "all of it on one page")
