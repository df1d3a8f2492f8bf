"""Ultralytics: a trainer class that trains a YOLO sparse.

    class SparseTrainer(SparseTraining, DetectionTrainer):
        method = st3fx.ST3(0.9)

    YOLO("yolo11n.yaml").train(data="coco8.yaml", trainer=SparseTrainer)

What it sees to:

* The model is converted before optimizer, average and DDP are made. The fixed weights of the
  head's integral (DFL) stay as they are.
* A step is counted for each update, and the schedule knows how many there will be, with
  Ultralytics' accumulation and warm-up.
* Until the target is reached there is no ``best.pt``, and patience waits.
* ``resume=True`` goes on with the sparsity that the run had; with the weights of its average, in
  half precision, as Ultralytics does it.
* In the end ``best.pt`` and ``last.pt`` hold plain models with static sparse weights, which need no
  st3fx, and the final validation is theirs, with batch norm fused.

Its own ``ModelEMA`` averages a converted model rightly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from st3fx.api import convert
from st3fx.errors import InputError
from st3fx.integrations.driver import Driver
from st3fx.methods import Method
from st3fx.methods.st3 import ST3
from st3fx.passes.convert.fold import is_converted

_INTEGRAL = "*.dfl.*"
_SIDE = 64
"""Of an example image; sizes stay free."""


class SparseTraining:
    """Beside one of Ultralytics' trainers, and before it: the two together train a model sparse.

    Attributes:
        method: Settings of the sparsification.
        driver: Of the model that is trained.
    """

    method: Method = ST3()
    driver: Driver

    def convert(self, model: nn.Module, images: Tensor) -> None:
        """Convert the model in place; override it for other settings of :func:`st3fx.convert`.

        Args:
            model: Of Ultralytics, in training mode, on the device of the training.
            images: (2, channels, height, width), zeros.
        """
        integral = any(".dfl." in name for name, _ in model.named_parameters())
        exclude = _INTEGRAL if integral else None
        convert(model, images, self.method, exclude=exclude, inplace=True)

    def set_model_attributes(self) -> None:
        """Convert the model, once it has all of its attributes."""
        trainer: Any = self
        super().set_model_attributes()  # type: ignore[misc]
        if trainer.args.time:
            raise InputError("time= does not say how many updates there will be: give epochs=")
        model = trainer.model
        if not is_converted(model):
            channels = int(model.yaml.get("channels", 3))
            self.convert(
                model.train(), torch.zeros(2, channels, _SIDE, _SIDE, device=trainer.device)
            )
        self.driver = Driver(model)
        self._waits = True

    def _setup_train(self) -> None:
        super()._setup_train()  # type: ignore[misc]
        trainer: Any = self
        self.driver.begin([trainer.optimizer], _updates(trainer))

    def resume_training(self, ckpt: Any) -> None:
        """The weights are those of the average: so are the thresholds, and the step."""
        trainer: Any = self
        if ckpt is not None and trainer.resume:
            if not is_converted(ckpt["ema"]):
                raise InputError(f"{trainer.args.model} is no checkpoint of a sparse training")
            unwrap_model(trainer.model).load_state_dict(ckpt["ema"].float().state_dict())
        super().resume_training(ckpt)  # type: ignore[misc]

    def validate(self) -> Any:
        """Evaluate; what has not reached the target is not the best, and wears out no patience."""
        trainer: Any = self
        if self._waits:
            trainer.best_fitness = None
            trainer.stopper.best_fitness, trainer.stopper.best_epoch = 0.0, trainer.epoch + 1
        found = super().validate()  # type: ignore[misc]
        self._waits = not self.driver.reached
        if self._waits:
            trainer.best_fitness = None
        return found

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Log sparsity and threshold beside the metrics."""
        super().save_metrics({**metrics, **self.driver.values()})  # type: ignore[misc]

    def final_eval(self) -> None:
        """Fold the models in ``best.pt`` and ``last.pt``, which the trainer then validates."""
        trainer: Any = self
        self.driver.end()
        for file in {trainer.last, trainer.best}:
            if file.exists():
                _fold_in(file)
        super().final_eval()  # type: ignore[misc]


def _updates(trainer: Any) -> int:
    """How often the optimizer will step, by the rule of Ultralytics' loop."""
    batches = len(trainer.train_loader)
    warmup = trainer._get_warmup_iterations(batches)
    count, last, most = 0, -1, trainer.accumulate
    for batch in range(batches * trainer.epochs):
        every = most
        if warmup and batch <= warmup:
            every = max(1, int(np.interp(batch, [0, warmup], [1, most]).round()))
        if batch - last >= every:
            count, last = count + 1, batch
    return max(1, count)


def _fold_in(file: Path) -> None:
    """Fold the average that a checkpoint holds."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    average = checkpoint["ema"]
    if average is not None and is_converted(average):
        checkpoint["ema"] = Driver(average.float()).fold(average, inplace=True).half()
        torch.save(checkpoint, file)
