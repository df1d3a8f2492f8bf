"""YOLO("yolo11n.yaml").train(...), sparse: the lines marked ``# st3fx`` are what is added."""

import sys
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

import st3fx
from st3fx.integrations.ultralytics import SparseTraining  # st3fx


class SparseTrainer(SparseTraining, DetectionTrainer):  # st3fx
    """At the top of a module, so that the processes of a DDP training find it."""

    method = st3fx.ST3(0.9, normalize="sigma")  # st3fx


def main(data: Path, model: str = "yolo11n.yaml", **settings: Any) -> YOLO:
    """Train; ``yolo.model`` is then a plain detector with zeros, as is ``best.pt``."""
    yolo = YOLO(model)
    yolo.train(data=str(data), trainer=SparseTrainer, **settings)  # st3fx: trainer=
    return yolo


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python train_with_ultralytics.py DATA.yaml (coco8.yaml is downloaded)")
    main(Path(sys.argv[1]), epochs=100)
