"""Lightning: ``Trainer(callbacks=[SparseCallback(st3fx.ST3(0.9))])``, before those that average.

What it sees to:

* A step is counted for each update that an optimizer makes, with accumulation, closures and
  gradient scalers.
* Until the target is reached ``ModelCheckpoint`` takes none for the best, and ``EarlyStopping``
  waits; its checks for NaN and divergence stay.
* ``sparsity`` and ``threshold`` are logged.
* Checkpoints of Lightning hold all of the training's state: ``fit(ckpt_path=...)`` goes on bit for
  bit. In the end ``callback.folded`` is a plain module; the module itself stays as it is, so that
  ``trainer.test(ckpt_path="best")`` loads into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from st3fx.api import convert
from st3fx.errors import InputError, StateError
from st3fx.integrations.driver import Driver
from st3fx.methods import Method
from st3fx.passes.convert.fold import is_converted


class SparseCallback(Callback):
    """Trains a LightningModule sparse.

    Attributes:
        driver: Of the module that is trained; from ``setup`` on.
        folded: A plain copy of the module with static sparse weights, when a fit has ended: of the
            weights that it ended with, which are averages where a callback averages.
    """

    def __init__(self, method: Method | None = None, *, example_inputs: Any = None) -> None:
        """Convert the module when a fit begins, in place, unless it is, or holds, a converted one.

        Args:
            method: Settings of the sparsification; ``ST3()`` by default. None for a converted one.
            example_inputs: As for :func:`st3fx.convert`; by default the module's
                ``example_input_array``.
        """
        self.method, self.example_inputs = method, example_inputs
        self.driver: Driver | None = None
        self.folded: nn.Module | None = None
        self._undo: list[Callable[[], None]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert, before optimizers are made and checkpoints loaded.

        Raises:
            InputError: If there is no example, or a method for a module that is converted.
            StateError: If another callback has copied the module before.
        """
        if stage != "fit":
            return
        if is_converted(pl_module):
            if self.method is not None and self.driver is None:
                raise InputError(
                    f"{type(pl_module).__name__} is converted already, with a method of its own: "
                    "leave the method out"
                )
        else:
            self._convert(trainer, pl_module)
        self.driver = Driver(pl_module)

    def _convert(self, trainer: Trainer, module: LightningModule) -> None:
        _require_first(callbacks_of(trainer), self)
        example = self.example_inputs
        if example is None:
            example = module.example_input_array
        if example is None:
            raise InputError(
                f"SparseCallback needs example_inputs: {type(module).__name__} has no "
                "example_input_array"
            )
        convert(module, example, self.method, inplace=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the optimizer, and keep the checkpoints from before the target out."""
        steps = trainer.estimated_stepping_batches
        finite = steps if steps not in (-1, float("inf")) else None
        self._driver.begin(trainer.optimizers, None if finite is None else int(finite))
        for callback in callbacks_of(trainer):
            if isinstance(callback, ModelCheckpoint):
                self._replace(callback, "check_monitor_top_k", self._only_then)
            elif isinstance(callback, EarlyStopping):
                self._replace(callback, "_evaluate_stopping_criteria", self._later)

    @property
    def _driver(self) -> Driver:
        assert self.driver is not None, "setup comes first"
        return self.driver

    def _replace(self, callback: Any, name: str, make: Callable[[Any, Any], Any]) -> None:
        setattr(callback, name, make(callback, getattr(callback, name)))
        self._undo.append(lambda: delattr(callback, name))

    def _only_then(self, _: Any, check: Callable[..., bool]) -> Callable[..., bool]:
        """Whether a checkpoint is among the best: none is before the target is reached."""
        return lambda *args, **kwargs: self._driver.reached and check(*args, **kwargs)

    def _later(self, callback: Any, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Whether to stop: before the target is reached, for NaN or divergence alone."""
        worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)

        def check(current: Any) -> Any:
            if self._driver.reached:
                return evaluate(current)
            callback.best_score, callback.wait_count = worst, 0
            threshold, callback.stopping_threshold = callback.stopping_threshold, None
            try:
                return evaluate(current)
            finally:
                callback.best_score, callback.wait_count = worst, 0
                callback.stopping_threshold = threshold

        return check

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, as often as the trainer does."""
        if trainer._logger_connector.should_update_logs:  # as Lightning's own callbacks ask
            pl_module.log_dict(self._driver.values())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fold a copy, of what other callbacks have made of the weights by now."""
        self._end()
        self.folded = self._driver.fold(pl_module, inplace=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the other callbacks as they were."""
        self._end()

    def _end(self) -> None:
        while self._undo:
            self._undo.pop()()
        if self.driver is not None:
            self.driver.end()


def callbacks_of(trainer: Any) -> list[Callback]:
    """All callbacks, in the order of their calls."""
    found: list[Callback] = trainer.callbacks
    return found


def _require_first(callbacks: list[Callback], own: Callback) -> None:
    """What copies the module in its ``setup`` must come after the one that converts it.

    Raises:
        StateError: If one comes before.
    """
    for callback in callbacks[: callbacks.index(own)]:
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            raise StateError(
                f"{type(callback).__name__} has copied the module before it was converted: put "
                "SparseCallback before it in Trainer(callbacks=[...])"
            )
