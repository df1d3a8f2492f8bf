"""State dicts of model and optimizer, whole, also where they are sharded over processes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import FSDPModule

from st3fx.core.messages import describe
from st3fx.errors import CheckpointError

_WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are spread over the processes."""
    return isinstance(model, FSDPModule)


def get_states(model: nn.Module, optimizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model's and optimizer's state; all processes must call it.

    Of a sharded model only the main process gets anything.
    """
    if not is_sharded(model):
        return model.state_dict(), optimizer.state_dict()
    return (
        sharded.get_model_state_dict(model, options=_WHOLE),
        sharded.get_optimizer_state_dict(model, optimizer.optimizer, options=_WHOLE),
    )


def set_states(
    model: nn.Module,
    optimizer: Any,
    states: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """The inverse of :func:`get_states`.

    Raises:
        CheckpointError: When the states do not fit.
    """
    of_model, of_optimizer = states
    try:
        if is_sharded(model):
            sharded.set_model_state_dict(model, of_model, options=_WHOLE)
            sharded.set_optimizer_state_dict(
                model, optimizer.optimizer, of_optimizer, options=_WHOLE
            )
        else:
            model.load_state_dict(of_model)
            optimizer.load_state_dict(of_optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint is of another model: {describe(error)}") from error
