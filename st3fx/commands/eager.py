"""Prepares a folded model for calls by PyTorch, in a process of its own, for a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from st3fx.bench.variant import Array, Mark, Prepared
from st3fx.commands.models import Request, folded
from st3fx.commands.progress import silent
from st3fx.export.call import Call
from st3fx.modules.state import to_eval
from st3fx.plan.example import Example

PREPARE = f"{__name__}:prepare"


def prepare(
    inputs: Sequence[Array], threads: int, mark: Mark, *, request: dict[str, Any], mode: str
) -> Prepared:
    """Build and fold a model, and bind inputs to it.

    Args:
        inputs: Values of its tensors, in the order of the example's.
        threads: Of PyTorch.
        mark: Called when the model is built, with the bytes of its weights: what building took is
            no part of running it.
        request: Fields of a ``Request``.
        mode: ``eager`` or ``compile``.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    built = folded(Request(**request), silent, with_example=True)
    model = to_eval(built.model)
    call = Call.of(model, Example.of(built.example))
    args, kwargs = call.arguments([torch.from_numpy(array) for array in inputs])
    state = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    del built
    mark(sum(state.values()))
    run = torch.compile(model) if mode == "compile" else model

    @torch.inference_mode()
    def once() -> object:
        return run(*args, **kwargs)

    return Prepared(once, f"torch {torch.__version__}")
