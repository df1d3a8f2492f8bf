"""Models and inputs of the benchmarks: every torchvision model with a call as in training."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
SEGMENTERS = ("fcn_", "deeplab", "lraspp")
VIDEO = ("mvit", "swin3d", "r3d_18", "mc3_18", "r2plus1d", "s3d")


def names() -> list[str]:
    """All models that torchvision lists."""
    return list(torchvision.models.list_models())


def build(name: str) -> nn.Module:
    """A model with random weights, built without a download."""
    options: dict[str, Any] = {"weights": None}
    if name.startswith("quantized_"):
        options["quantize"] = False
    elif name.startswith(SEGMENTERS) or _is(name, DETECTORS):
        options["weights_backbone"] = None
        if _is(name, DETECTORS) and not name.startswith("ssd"):
            options.update(min_size=128, max_size=160)
        if "rcnn" in name:
            # A random model proposes boxes everywhere; a hundred of them show as much.
            options.update(rpn_post_nms_top_n_train=100, rpn_post_nms_top_n_test=100)
            options.update(box_detections_per_img=20)
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model


def inputs(name: str, batch: int = 2, *, larger: bool = False) -> tuple[Any, dict[str, Any]]:
    """Positional and keyword arguments of one training call; small where the model allows it.

    Args:
        name: A model.
        batch: Samples; a detector's images differ in size.
        larger: Images of another size, where the model takes several.
    """
    generator = torch.Generator().manual_seed(0)
    more = 32 if larger else 0

    def images(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if _is(name, DETECTORS):
        sizes = [(128 + more, 160) if i % 2 == 0 else (120, 128) for i in range(batch)]
        return ([images(3, *size) for size in sizes], [_target(name, *s) for s in sizes]), {}
    if name.startswith("raft"):
        pair = (images(batch, 3, 128 + more, 128), images(batch, 3, 128 + more, 128))
        return pair, {"num_flow_updates": 2}
    if name.startswith("mvit") or name == "s3d":
        return (images(max(1, batch - 1), 3, 16, 224, 224),), {}
    if _is(name, VIDEO):
        return (images(batch, 3, 16, 64 + more, 64),), {}
    size = 299 if "inception" in name else 224 if name.startswith(("vit", "maxvit")) else 96
    return (images(batch, 3, size + more, size + more),), {}


def _is(name: str, family: tuple[str, ...]) -> bool:
    return any(part in name for part in family)


def _target(name: str, height: int, width: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [30.0, 20.0, 100.0, 110.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(2, height, width, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.tensor([40.0, 40.0, 1.0]).expand(2, 17, 3).clone()
    return target
