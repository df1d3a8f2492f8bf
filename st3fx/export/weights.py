"""Writes the weights of a folded model for whoever has its class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from st3fx.core.messages import describe, few
from st3fx.errors import ExportError
from st3fx.files.atomic import replace_file
from st3fx.files.compact import save_compact
from st3fx.files.positive_zeros import positive_zeros


def write_weights(state: Mapping[str, Any], path: Path, *, compact: bool) -> None:
    """Write a state dict, whole or not at all.

    The safetensors file has every key, tied tensors under each of their names, so that
    ``load_state_dict(load_file(path), strict=True)`` takes it. The compact file stores them once.
    Zeros of either sign are +0.0 in both.

    Args:
        state: Full name -> tensor.
        path: The file; one that is there is replaced.
        compact: Write the format of ``st3fx.files.compact``.

    Raises:
        ExportError: For values that are not tensors, and when the file cannot be written.
    """
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ExportError(f"cannot store {few(odd)}: not a tensor (a weight file holds no pickles)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if compact:
            save_compact(state, path)
            return
        content = to_bytes({key: positive_zeros(value.detach().cpu()).clone().contiguous()
                            for key, value in state.items()})  # fmt: skip
        replace_file(path, lambda file: file.write(content))
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ExportError(f"cannot store the weights: {describe(error)}") from error
