"""Making a session: optimizer, average, and everything wrapped for the machine."""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from torch import nn

from st3fx.core.state import preserved, seed_everything
from st3fx.data.base import Data
from st3fx.errors import TrainError
from st3fx.training.average import Average
from st3fx.training.batches import Batches
from st3fx.training.evaluate import call
from st3fx.training.folder import RunFolder
from st3fx.training.interrupt import Interrupt
from st3fx.training.machine import describe_device, prepare
from st3fx.training.optim import make_optimizer
from st3fx.training.report import Outline, Reporter
from st3fx.training.session import Session
from st3fx.training.settings import Settings


def make_session(
    settings: Settings,
    accelerator: Accelerator,
    data: Data,
    batches: Batches,
    model: nn.Module,
    folder: RunFolder,
    report: Reporter,
) -> Session:
    """A session at its beginning.

    Args:
        settings: Of the run.
        accelerator: Made for it.
        data: Made for it.
        batches: Of the data.
        model: Converted.
        folder: Where the run is written; nothing is written yet.
        report: Who watches.

    Raises:
        TrainError: When model and data do not fit.
    """
    check_outputs(model, data)
    _choose_kernels(settings)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    model.to(accelerator.device)
    twin = copy.deepcopy(model) if settings.fsdp else None
    average = Average(model, settings.model_ema_decay) if settings.model_ema else None
    optimizer = make_optimizer(model, settings)
    if settings.torchcompile:
        # In place, so that names, hooks and state dict stay those of the plain model.
        model.compile()
    wrapped, prepared = prepare(accelerator, model, optimizer)
    # From here on numbers are drawn for dropout and the like: others in each process.
    seed_everything(settings.seed + accelerator.process_index)
    return Session(
        settings=settings,
        accelerator=accelerator,
        plain=model,
        model=wrapped,
        optimizer=prepared,
        batches=batches,
        test=accelerator.prepare(data.test),
        average=average,
        folder=folder,
        report=report,
        interrupt=Interrupt(),
        twin=twin,
    )


def _choose_kernels(settings: Settings) -> None:
    """The same kernels in each start, unless speed is asked for: a run must be able to go on."""
    torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    torch.backends.cudnn.deterministic = not settings.cudnn_benchmark


@torch.no_grad()
def check_outputs(model: nn.Module, data: Data) -> None:
    """Fail if the model has fewer outputs than the data has classes.

    Raises:
        TrainError: Then, or when it does not give logits.
    """
    with preserved(model):
        logits = call(model.eval(), data.example(2))
    classes = data.num_classes
    if classes is not None and logits.shape[1] < classes:
        raise TrainError(
            f"{type(model).__name__} has {logits.shape[1]} outputs, and {data.name} has {classes} "
            "classes: give the model as many outputs"
        )


def outline(session: Session, name: str, data: Data) -> Outline:
    """What the session is going to do."""
    sparsifier = session.sparsifier
    plan = sparsifier.plan
    return Outline(
        name=name,
        data=data.name,
        folder=session.folder.path,
        method=sparsifier.method.name,
        target=sparsifier.target,
        budget=getattr(sparsifier.method, "budget", "weights"),
        epochs=session.settings.epochs,
        steps=session.steps_per_epoch * session.settings.epochs,
        done=session.step,
        sites=len(plan.sites),
        site_parameters=plan.numel,
        parameters=plan.total_parameters,
        device=describe_device(session.accelerator),
    )


def start_trackers(session: Session) -> None:
    """Open the trackers; TensorBoard forgets what was written after the step of the session."""
    session.accelerator.init_trackers(
        "tensorboard",
        init_kwargs={"tensorboard": {"purge_step": session.step + 1}},
    )
    for name in session.settings.log_with:
        session.accelerator.get_tracker(name).store_init_configuration(session.settings.to_dict())


def stop_trackers(session: Session) -> None:
    """Close the trackers; on a full disk that fails, which must not hide how the run ended."""
    try:
        session.accelerator.end_training()
    except OSError as error:
        session.report.note(f"the trackers' files are incomplete: {error}")
