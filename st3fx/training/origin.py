"""What a run is made from, so that a change between a checkpoint and its resumption is said.

Of the model: the source files of the user's that its modules come from. Of the data: how many
samples there are, the source of the user's loaders, and a few samples of the sets that st3fx reads,
which give the same ones at each start. That is cheap, and notices what happens by mistake; it is no
proof that nothing was changed.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from st3fx.data import Data
from st3fx.data.table import is_user_data
from st3fx.errors import CheckpointError
from st3fx.loading.spec import parse_spec
from st3fx.modules.state import preserved_rng
from st3fx.whose import is_installed, is_users

_SAMPLES = 8
"""Of each set: the first, the last, and some between them."""

Origin = dict[str, str]
"""What -> SHA-256."""


def origin_of(model: nn.Module, source: Path | None, data: Data) -> Origin:
    """What a run is made from.

    Args:
        model: Converted or not.
        source: The file that it was built from, if there is one.
        data: Of the run.
    """
    return {"the model's source": _files(_sources(model, source)), "the data": _of_data(data)}


def require_same(
    then: Mapping[str, str], now: Mapping[str, str], where: Path, *, accepted: bool
) -> str | None:
    """What was changed since a checkpoint was written, in one line, where that is accepted.

    Raises:
        CheckpointError: When it is not.
    """
    changed = " and ".join(name for name in now if name in then and now[name] != then[name])
    if not changed:
        return None
    verb = "were" if " and " in changed else "was"
    if accepted:
        return f"{changed} {verb} changed since {where} was written: the run goes on all the same"
    raise CheckpointError(
        f"{changed} {verb} changed since {where} was written: undo the change, go on all the same "
        "by --accept-changes, or start anew in another --output-dir"
    )


def _sources(model: nn.Module, source: Path | None) -> set[Path]:
    """The user's files that the model's classes are written in, and that it was built by."""
    files = set() if source is None else {source}
    for kind in {base for module in model.modules() for base in type(module).__mro__}:
        if kind.__module__ in sys.modules:
            try:
                file = inspect.getsourcefile(kind)
            except TypeError:  # built in
                continue
            if file is not None and is_users(file, ()) and not is_installed(file):
                files.add(Path(file))
    return files


def _files(paths: Iterable[Path]) -> str:
    """Of their contents: where they lie may change."""
    digests = []
    for path in paths:
        try:
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        except OSError:  # typed in, or gone by now
            continue
    return _of_text(sorted(digests))


def _of_data(data: Data) -> str:
    sets = (data.train.dataset, data.test.dataset)
    parts = [f"{_length(dataset)} {type(dataset).__name__}" for dataset in sets]
    if not is_user_data(data.name):
        parts += [_of_samples(dataset) for dataset in sets]
    elif (spec := parse_spec(data.name)).kind == "file":
        parts.append(_files([Path(spec.target)]))
    return _of_text([*parts, str(data.num_classes)])


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def _of_samples(dataset: Any) -> str:
    digest, last = hashlib.sha256(), len(dataset) - 1
    with preserved_rng():
        for place in sorted({last * number // (_SAMPLES - 1) for number in range(_SAMPLES)}):
            try:
                sample = dataset[place]
            except Exception as error:  # noqa: BLE001  the loop says it better when it gets there
                digest.update(type(error).__name__.encode())
                continue
            for value in sample:
                if isinstance(value, Tensor):
                    digest.update(value.contiguous().numpy().tobytes())
                else:
                    digest.update(repr(value).encode())
    return digest.hexdigest()


def _of_text(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
