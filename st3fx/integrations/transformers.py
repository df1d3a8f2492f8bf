"""Hugging Face's Trainer: ``sparsify(trainer, st3fx.ST3(0.9))`` before ``trainer.train()``.

What it sees to:

* A step is counted for each update that the optimizer makes: accumulated batches count once, and
  what a gradient scaler skips does not count.
* Until the target is reached no checkpoint is the best, and early stopping waits: Trainer's
  ``load_best_model_at_end`` would take a model of an early, dense epoch.
* Sparsity and threshold are in the logs, for trackers too.
* The state of the training is in the model's own state dict, so that ``resume_from_checkpoint``
  goes on bit for bit.
* In the end the model is folded: ``trainer.model`` is a plain one, and ``save_model`` writes it.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from st3fx.api import convert
from st3fx.errors import InputError, TargetWarning
from st3fx.integrations.driver import Driver
from st3fx.methods import Method
from st3fx.modules.state import preserved_rng
from st3fx.passes.convert.fold import is_converted
from st3fx.plan.example import Call
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.whose import callers_level

_SAMPLES = 2
"""In an example; the batch size stays free."""


def sparsify(trainer: Trainer, method: Method | None = None, *, fold: bool = True) -> Sparsifier:
    """Let a Trainer train its model sparse, and fold it in the end.

    Call it before ``trainer.train()``. The model is converted in place, with the calls that the
    Trainer makes. For settings of the conversion convert it before:
    ``st3fx.convert(trainer.model, example_calls(trainer), ..., inplace=True)``.

    Args:
        trainer: With its model, which may be converted already, or with ``model_init``.
        method: Settings of the sparsification; ``ST3()`` by default. None for a converted model.
        fold: Fold ``trainer.model`` in place when the training ends with its target reached.

    Returns:
        The model's sparsifier; with ``model_init``, that of the first model.

    Raises:
        InputError: If a method is given for a model that is converted, or no example can be made.
        PlanError: As :func:`st3fx.convert`.
    """
    model: Any = trainer.model
    if not is_converted(model):
        calls = example_calls(trainer)
        make = functools.partial(_converted, calls=calls, method=method)
        make(model)
        if trainer.model_init is not None:
            trainer.model_init = _sparse(trainer.model_init, make)
    elif method is not None:
        raise InputError(
            f"{type(model).__name__} is converted already, with a method of its own: leave the "
            "method out"
        )
    driver = Driver(model)
    trainer.callback_handler.callbacks.insert(0, SparseCallback(driver, fold=fold))
    return driver.sparsifier


def _converted(model: Any, *, calls: list[Call], method: Method | None) -> Any:
    was = model.training  # convert leaves it in training
    convert(model, calls, method, inplace=True)
    return model.train(was)


def _sparse(model_init: Callable[..., Any], make: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(model_init)  # Trainer counts its arguments
    def init(*args: Any) -> Any:
        return make(model_init(*args))

    return init


class SparseCallback(TrainerCallback):
    """Drives a converted model in a Trainer; :func:`sparsify` adds it before all others.

    Among the last, as by ``callbacks=[SparseCallback(model)]``, it does the same, but trackers get
    their logs before it.
    """

    def __init__(self, model: nn.Module | Driver, *, fold: bool = True) -> None:
        """Drive ``model``.

        Args:
            model: What :func:`st3fx.convert` gave.
            fold: Fold it in place when the training ends with its target reached.

        Raises:
            StateError: If it is not converted.
        """
        self.driver = model if isinstance(model, Driver) else Driver(model)
        self.fold = fold

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach the optimizer, of the model that is trained now."""
        self.driver = Driver(kwargs["model"])
        self.driver.begin([kwargs["optimizer"]], state.max_steps)
        self._wait(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was the best of an evaluation before the target was reached."""
        self._wait(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As ``on_step_begin``: after the last step there is none."""
        self._wait(state)

    def _wait(self, state: Any) -> None:
        if not self.driver.reached:
            # The next evaluation is then the first one for EarlyStoppingCallback, too.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add sparsity and threshold to what is logged."""
        logs = kwargs.get("logs")
        if not logs or "train_runtime" in logs:
            return
        prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        values = {prefix + name: value for name, value in self.driver.values().items()}
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fold, if the target is reached."""
        self.driver.end()
        if not self.fold:
            return
        if self.driver.reached:
            self.driver.fold(kwargs["model"], inplace=True)
            return
        warnings.warn(
            f"the training ends {self.driver.where}: the model is not folded; train on, or call "
            "st3fx.fold",
            TargetWarning,
            stacklevel=callers_level(),
        )


class _Called(Exception):  # noqa: N818 (it is no error: it ends a call whose arguments are known)
    pass


def example_calls(trainer: Trainer) -> list[Call]:
    """The calls of its model that a Trainer makes in training and in evaluation.

    They have what the Trainer adds to a batch (``num_items_in_batch``), and lack what it takes out
    of it (labels, where it smoothes them). Nothing is computed, and no generator moves on.

    Args:
        trainer: With a training data set.

    Returns:
        One or two calls, on the model's device.

    Raises:
        InputError: If there are no training data, or the loss does not come from the model.
    """
    model: Any = trainer.model
    if trainer.train_dataset is None:
        raise InputError("the Trainer has no train_dataset to take an example from")
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Called

    was, handle = model.training, model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with preserved_rng(), torch.no_grad():
            _train(trainer, _batch(trainer))
            _evaluate(trainer, _batch(trainer))
    finally:
        handle.remove()
        model.train(was)
    if not seen:
        raise InputError(f"the Trainer's loss does not call {type(model).__name__}")
    (args, kwargs), *others = seen
    calls = [Call(*args, **kwargs)]
    for args, names in others:
        if len(args) != len(calls[0].args) or set(names) != set(kwargs):
            calls.append(Call(*args, **names))
    return calls


def _batch(trainer: Trainer) -> Any:
    """The first samples of the data, as the loader's function puts them together."""
    loader: Any = trainer.get_train_dataloader()
    data = loader.dataset
    if isinstance(data, IterableDataset):
        samples = list(itertools.islice(iter(data), _SAMPLES))
    else:
        samples = [data[index] for index in range(min(_SAMPLES, len(data)))]
    return loader.collate_fn(samples)


def _train(trainer: Trainer, batch: Any) -> None:
    model: Any = trainer.model
    count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)[1]
    model.train()
    try:
        trainer.compute_loss(model, trainer._prepare_inputs(batch), num_items_in_batch=count)
    except _Called:
        return


def _evaluate(trainer: Trainer, batch: Any) -> None:
    model: Any = trainer.model
    model.eval()
    try:
        trainer.prediction_step(model, batch, prediction_loss_only=False)
    except _Called:
        return
