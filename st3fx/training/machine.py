"""Where a run computes: the Accelerator, and what it may do to a converted model."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from torch.optim import Optimizer

from st3fx.errors import TrainError, suggest
from st3fx.modules.marks import conversion_of
from st3fx.training.folder import RunFolder
from st3fx.training.settings import Settings


def make_accelerator(settings: Settings, folder: RunFolder) -> Accelerator:
    """The Accelerator of a run, with its trackers named but not started.

    Raises:
        TrainError: When this machine cannot do what is asked for.
    """
    _check_trackers(settings.log_with)
    if settings.precision == "fp16" and not torch.cuda.is_available():
        # Accelerate would compute in fp32 without a word.
        raise TrainError("precision = fp16 needs a GPU: give --precision bf16 or no")
    plugin = None
    if settings.fsdp:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    # One process may train several models after another; Accelerate keeps its state globally.
    release()
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=settings.precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(settings.grad_accum_steps),
            fsdp_plugin=plugin,
            log_with=["tensorboard", *settings.log_with],
            project_dir=str(folder.path),
        )
    except (ValueError, RuntimeError) as error:
        release()
        raise TrainError(f"cannot train here: {error}") from error
    if plugin is not None:
        _shard(accelerator, plugin)
    return accelerator


def _shard(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Make sure that several processes share the model.

    On CPUs Accelerate leaves the plugin aside and takes DDP, though its FSDP2 works there too.
    """
    if accelerator.num_processes == 1:
        release()
        raise TrainError(
            "fsdp shards over several processes: start them by torchrun --nproc-per-node N -m st3fx"
        )
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def leave_group(accelerator: Accelerator) -> None:
    """End the group of processes, if there is one, so that the interpreter may end too.

    Gloo's threads hold the tensors of the last exchange a moment longer than its caller waits for
    them, and one that drops them while the interpreter ends aborts the process
    (https://github.com/pytorch/pytorch/pull/179291); ending the group waits for no thread as long
    as a device mesh holds it. Sleeping lets go of the interpreter's lock, which they need for it.
    """
    accelerator.state.destroy_process_group()
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        time.sleep(0.1)


def release() -> None:
    """Let the next run in this process choose its own precision; process groups stay."""
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    GradientState._reset_state()


def require_precision(model: nn.Module) -> None:
    """Refuse to train sites in half precision: their steps would be lost in rounding.

    Raises:
        TrainError: With the first one, and what to do.
    """
    for site in conversion_of(model).plan.sites:
        for name in site.parameters:
            dtype = model.get_parameter(name).dtype
            if dtype.itemsize < 4:
                kind = str(dtype).removeprefix("torch.")
                raise TrainError(
                    f"{name} is {kind}: latent weights are trained in float32, as smaller steps "
                    "than their precision are lost; make the model .float(), and compute in half "
                    "precision by --precision bf16 (--amp)"
                )


def _check_trackers(names: tuple[str, ...]) -> None:
    known = sorted(LOGGER_TYPE_TO_CLASS)
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            close = suggest(name, known) or f"; there are {', '.join(known)}"
            raise TrainError(f"log_with = {name!r}: Accelerate has no such tracker{close}")
        if name not in available:
            raise TrainError(f"log_with = {name!r}: it is not installed; pip install {name}")


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Any]:
    """Model and optimizer, wrapped for this machine.

    Accelerate's mixed precision replaces the model's ``forward``, which here is the sparse one, and
    stops later lookups of it. It is put back: the loop itself enters ``accelerator.autocast()``.
    """
    forward = model.__dict__.get("forward")
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if forward is None:
        model.__dict__.pop("forward", None)
    else:
        model.__dict__["forward"] = forward
    model.__dict__.pop("_original_forward", None)
    return wrapped, optimizer


def describe_device(accelerator: Accelerator) -> str:
    """``cpu``, ``NVIDIA H200``, ``4 × cpu (DDP)``."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    count = accelerator.num_processes
    return f"{count} × {name}" if count > 1 else name
