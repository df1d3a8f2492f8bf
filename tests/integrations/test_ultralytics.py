"""Ultralytics' own trainer trains sparse detectors, and saves plain ones."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import st3fx
from st3fx.errors import InputError
from st3fx.modules.marks import is_ours, is_root

os.environ.setdefault("YOLO_OFFLINE", "true")  # no look for a newer version
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cv2
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    from st3fx.integrations.ultralytics import SparseTraining

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ultralytics' own; and layers of a few weights go empty
]

NET = """
nc: 1
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C3k2, [16, False, 0.25]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""
SETTINGS: dict[str, Any] = {
    "epochs": 4, "imgsz": 32, "batch": 2, "nbs": 4, "workers": 0, "device": "cpu", "plots": False,
    "warmup_epochs": 1, "optimizer": "SGD", "verbose": False, "amp": False,
}  # fmt: skip


class Sparse(SparseTraining, DetectionTrainer):
    """Says what happened."""

    method = st3fx.ST3(0.8)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[int] = []
        self.seen: list[tuple[Any, bool]] = []

    def optimizer_step(self) -> None:
        super().optimizer_step()
        self.steps.append(self.driver.sparsifier.steps)

    def validate(self) -> Any:
        found = super().validate()
        self.seen.append((self.best_fitness, self.driver.reached))
        return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images with a square each."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(8):
        image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        x, y = rng.integers(4, 16, 2)
        image[y : y + 12, x : x + 12] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), image)
        place = f"0 {(x + 6) / 32} {(y + 6) / 32} 0.375 0.375\n"
        (tmp_path / "labels" / f"{index}.txt").write_text(place)
    file = tmp_path / "data.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: {{0: square}}\n")
    (tmp_path / "net.yaml").write_text(NET)
    return file


def zeros(model: nn.Module) -> float:
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    found = [layer.weight for layer in layers if layer.weight.numel() != 16]  # but for the DFL's
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


def train(data: Path, name: str, trainer: Any = Sparse, **kwargs: Any) -> Any:
    model = YOLO(str(data.parent / "net.yaml"), task="detect")
    model.train(data=str(data), trainer=trainer, project=str(data.parent), name=name,
                **(SETTINGS | kwargs))  # fmt: skip
    return model


def test_a_training_counts_waits_and_saves_plain_models(data: Path) -> None:
    model = train(data, "run")
    trainer = model.trainer
    # Four batches an epoch; the accumulation rises from one to two over the first.
    assert trainer.steps == [*range(1, len(trainer.steps) + 1)]
    assert [reached for _, reached in trainer.seen] == [False, True, True, True]
    assert trainer.seen[0][0] is None  # no best before
    assert trainer.stopper.best_epoch > 1
    for file in ("best.pt", "last.pt"):
        saved = torch.load(data.parent / "run" / "weights" / file, weights_only=False)["model"]
        assert not any(is_root(module) or is_ours(type(module)) for module in saved.modules())
        assert not any("st3fx" in name for name in saved.state_dict())
        assert zeros(saved) == pytest.approx(0.8, abs=5e-3)
    values = torch.arange(16.0).view(1, 16, 1, 1)
    assert torch.equal(model.model.model[-1].dfl.conv.weight.float(), values)
    assert zeros(model.model) == pytest.approx(0.8, abs=5e-3)
    before = model.model(torch.ones(1, 3, 32, 32))[0]
    fused = model.model.fuse()
    assert torch.allclose(before, fused(torch.ones(1, 3, 32, 32))[0], atol=1e-3)
    assert zeros(fused) == pytest.approx(0.8, abs=5e-3)
    columns, *_, last = (data.parent / "run" / "results.csv").read_text().splitlines()
    row = dict(zip(columns.split(","), last.split(","), strict=True))
    assert float(row["sparsity"]) == pytest.approx(0.8, abs=5e-3)


def test_the_schedule_knows_how_many_updates_there_are(data: Path) -> None:
    for batch, nbs, warmup in ((2, 16, 3), (8, 8, 0)):
        kwargs = {"batch": batch, "nbs": nbs, "warmup_epochs": warmup, "epochs": 2}
        totals: list[int] = []

        class Counted(Sparse):
            def final_eval(self) -> None:
                totals.extend([len(self.steps), self.driver.sparsifier.total_steps or 0])  # noqa: B023
                super().final_eval()

        train(data, f"{batch}-{nbs}", Counted, **kwargs)
        assert totals[0] == totals[1], kwargs


def test_a_training_goes_on_where_it_was(data: Path) -> None:
    class Stops(Sparse):
        def save_model(self) -> Any:
            found = super().save_model()
            if self.epoch == 1:
                raise KeyboardInterrupt
            return found

    with pytest.raises(KeyboardInterrupt):
        train(data, "run", Stops)
    last = data.parent / "run" / "weights" / "last.pt"
    model = YOLO(str(last))
    model.train(trainer=Sparse, resume=True)
    steps = model.trainer.steps
    assert steps[0] == 6  # five in the first two epochs
    assert math.isclose(zeros(model.model), 0.8, abs_tol=5e-3)


def test_mistakes_are_named(data: Path) -> None:
    with pytest.raises(InputError, match="time= does not say how many updates"):
        train(data, "time", time=0.1)
