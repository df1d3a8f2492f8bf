"""torchvision: every model that it lists, on inputs as small as it takes them."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks import cases
from benchmarks.coverage.case import Call, Case, Inputs, images, normal

DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
SEGMENTERS = ("fcn_", "deeplab", "lraspp")
CLIPS = ("swin3d", "r3d_18", "mc3_18", "r2plus1d")
FIXED_CLIPS = ("mvit", "s3d")
SINGLE = (*FIXED_CLIPS, "ssd300")
"""Models that take large inputs only: one sample is as good an example."""

SIZE = 64


def names() -> list[str]:
    """All models that torchvision lists."""
    return list(torchvision.models.list_models())


def case(name: str) -> Case:
    """One model."""

    def build() -> nn.Module:
        return cases.build(name, **_options(name))

    return Case(name, build, _inputs(name), batch=1 if name.startswith(SINGLE) else 2,
                one_thread=name.startswith("mvit"))  # fmt: skip


def _options(name: str) -> dict[str, Any]:
    """What its builder is given beside the name."""
    if name.startswith("quantized_"):
        return {"quantize": False}
    if name.startswith(SEGMENTERS):
        return {"weights_backbone": None}
    if name.startswith("vit"):
        return {"image_size": _size(name)}
    if not _is_detector(name):
        return {}
    options: dict[str, Any] = {"weights_backbone": None, "detections_per_img": 5}
    if not name.startswith("ssd"):
        options.update(min_size=128, max_size=160)
    # A random model sees objects everywhere; a few of them show as much.
    if "rcnn" in name:
        options.update(rpn_post_nms_top_n_train=100, rpn_post_nms_top_n_test=100)
        options["box_detections_per_img"] = options.pop("detections_per_img")
    else:
        options["topk_candidates"] = 20
    return options


def _size(name: str) -> int:
    """Pixels of an image's side: what patches and windows divide, what auxiliary heads need."""
    if name.removeprefix("quantized_") == "inception_v3":
        return 299
    return 224 if name == "maxvit_t" else 70 if name == "vit_h_14" else SIZE


def _is_detector(name: str) -> bool:
    return any(part in name for part in DETECTORS)


def _inputs(name: str) -> Inputs:
    if _is_detector(name):
        return lambda batch, changed: (_scenes(name, batch, 32 if changed else 0), {})
    if name.startswith("raft"):
        return _frames
    if name.startswith(FIXED_CLIPS):
        return lambda batch, _: ((normal(batch, 3, 16, 224, 224),), {})
    if name.startswith(CLIPS):
        return lambda batch, changed: ((normal(batch, 3, 8, 96 if changed else 64, 64),), {})
    return images(_size(name), other=_size(name) + 32)


def _frames(batch: int, changed: bool) -> Call:
    height = 160 if changed else 128
    pair = (normal(batch, 3, height, 128), normal(batch, 3, height, 128).flip(3))
    return pair, {"num_flow_updates": 2}


def _scenes(name: str, batch: int, more: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A detector's images, which differ in size, and what is to be seen in them."""
    sizes = [(128 + more, 160) if i % 2 == 0 else (120, 128) for i in range(batch)]
    scenes = [normal(1, 3, *size)[0] for size in sizes]
    return scenes, [_target(name, *size) for size in sizes]


def _target(name: str, height: int, width: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [30.0, 20.0, 100.0, 110.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(2, height, width, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.tensor([40.0, 40.0, 1.0]).expand(2, 17, 3).clone()
    return target
