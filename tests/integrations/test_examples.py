"""The examples run as they stand, for some steps on small data, and end with zeros."""

from __future__ import annotations

import os
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from tests.integrations.test_ultralytics import NET

os.environ.setdefault("YOLO_OFFLINE", "true")  # no look for a newer version
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of other libraries


def example(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def zeros(model: nn.Module) -> float:
    kinds = (nn.Linear, nn.Conv2d)
    found: list[Tensor] = [m.weight for m in model.modules() if isinstance(m, kinds)]
    assert not any("st3fx" in name for name in model.state_dict())
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


@pytest.mark.parametrize(
    "name",
    [
        "train_with_timm",
        "train_with_torchvision",
        "train_with_lightning",
        "train_with_transformers",
    ],
)
def test_a_trainer(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"  # of which nothing is there, as where the file itself is called
    assert zeros(example(name)(folder)) == pytest.approx(0.8, abs=0.01)
    assert any(folder.iterdir())  # it has saved something


def test_an_adapter() -> None:
    assert zeros(example("lora_over_a_sparse_base")()) == pytest.approx(0.7, abs=0.01)


def test_a_detector(tmp_path: Path) -> None:
    import cv2

    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(4):
        image = np.full((32, 32, 3), 40 * index, np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), image)
        (tmp_path / "labels" / f"{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: {{0: square}}\n")
    settings = {
        "epochs": 2, "imgsz": 32, "batch": 2, "nbs": 2, "workers": 0, "device": "cpu",
        "plots": False, "project": str(tmp_path), "verbose": False, "amp": False,
        "warmup_epochs": 0,
    }  # fmt: skip
    net = tmp_path / "net.yaml"  # quicker than yolo11n.yaml
    net.write_text(NET)
    yolo = example("train_with_ultralytics")(data, str(net), **settings)
    assert zeros(yolo.model) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_what_a_user_adds_is_little(file: Path) -> None:
    marked = [line for line in file.read_text().splitlines() if "  # st3fx" in line]
    assert 2 <= len(marked) <= 5, marked
