"""Where a run computes: the Accelerator, and what it may do to a converted model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from st3fx.errors import TrainError, suggest
from st3fx.modules.marks import conversion_of
from st3fx.modules.state import preserved
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


def settle_buckets(
    accelerator: Accelerator, wrapped: nn.Module, forward: Callable[[], Tensor]
) -> None:
    """Let DDP arrange its buckets before the first step; nothing of it stays.

    DDP begins with all gradients in one bucket, and after the first backward puts them into others,
    in the order in which they came. Where an element lies in its bucket says in which order three
    or more processes add it up. So the first step after a resumption would be rounded otherwise
    than the same step of a run that was not interrupted. Now all steps of both have these buckets.

    Args:
        accelerator: Of the run.
        wrapped: The model, which only DDP has buckets for.
        forward: Gives its logits for a few samples. The model is called eagerly: a batch size of
            its own would make a compiler take the sizes for free ones.
    """
    if not isinstance(wrapped, DistributedDataParallel):
        return
    mode = wrapped.training
    with preserved(wrapped.module), torch.compiler.set_stance("force_eager"):
        wrapped.train()
        with accelerator.autocast():
            logits = forward()
        logits.float().sum().backward()
    wrapped.train(mode)
    wrapped.zero_grad(set_to_none=True)


def describe_device(accelerator: Accelerator) -> str:
    """``cpu``, ``NVIDIA H200``, ``4 × cpu (DDP)``."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    count = accelerator.num_processes
    return f"{count} × {name}" if count > 1 else name
