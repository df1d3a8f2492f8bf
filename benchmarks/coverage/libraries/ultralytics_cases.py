"""ultralytics: a tiny YOLO of several generations and for several tasks."""

from __future__ import annotations

from torch import nn
from ultralytics.nn import tasks

from benchmarks.coverage.case import Case, images

MODELS = {
    "yolov3-tiny": tasks.DetectionModel,
    "yolov5n": tasks.DetectionModel,
    "yolov6n": tasks.DetectionModel,
    "yolov8n": tasks.DetectionModel,
    "yolov8n-seg": tasks.SegmentationModel,
    "yolov8n-pose": tasks.PoseModel,
    "yolov8n-cls": tasks.ClassificationModel,
    "yolov8n-obb": tasks.OBBModel,
    "yolov9t": tasks.DetectionModel,
    "yolov10n": tasks.DetectionModel,
    "yolo11n": tasks.DetectionModel,
    "yolo12n": tasks.DetectionModel,
    "rtdetr-resnet50": tasks.RTDETRDetectionModel,
}
"""Configuration -> the class for its task."""


def names() -> list[str]:
    """All of them."""
    return list(MODELS)


def case(name: str) -> Case:
    """One model on small images."""

    def build() -> nn.Module:
        model: nn.Module = MODELS[name](f"{name}.yaml", verbose=False)
        return model

    return Case(name, build, images(64, other=96))
