"""Architectures with random weights, pruned by blocks, quantized by ONNX Runtime.

The largest are made narrower and shallower, of the same parts: the tests take a minute less then.
As they are, with ``ST3FX_ZOO=whole``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from st3fx.passes.onnx.transpose_weights import TransposeWeights

KEPT = 0.1
"""Share of the blocks of four input channels that stay."""


class _First(nn.Module):
    """The first tensor of what a model gives."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(x, **self.options)
        while not isinstance(output, Tensor):
            output = next(iter(output.values() if isinstance(output, dict) else output))
        return output


def _slim_vgg11() -> nn.Module:
    from torchvision.models import vgg11

    model: nn.Module = vgg11(weights=None)
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1000)
    )
    return model


def _slim_densenet() -> nn.Module:
    from torchvision.models import DenseNet

    model: nn.Module = DenseNet(growth_rate=16, block_config=(3, 4, 6, 4), num_init_features=32)
    return model


def _slim_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = ((48, 96, 1), (96, 192, 1), (192, 384, 3), (384, None, 1))
    model: nn.Module = ConvNeXt([CNBlockConfig(*size) for size in sizes])
    return model


def _slim_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    model: nn.Module = SwinTransformer([4, 4], 48, [2, 2, 2, 2], [3, 6, 12, 24], [7, 7])
    return model


SLIM: dict[str, Callable[[], nn.Module]] = {
    "vgg11": _slim_vgg11,
    "densenet121": _slim_densenet,
    "convnext_tiny": _slim_convnext,
    "swin_t": _slim_swin,
}


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        if name in SLIM and os.environ.get("ST3FX_ZOO") != "whole":
            return _First(SLIM[name]())
        options: dict[str, Any] = {"weights": None}
        if name.startswith("segmentation."):
            options["weights_backbone"] = None
        model = torchvision.models
        for part in name.split("."):
            model = getattr(model, part)
        return _First(model(**options))

    return build


def _bert() -> nn.Module:
    transformers: Any = importlib.import_module("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip

    class Embedded(nn.Module):
        """A BERT that is given embeddings: calibration and comparison take floats."""

        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.BertModel(config, add_pooling_layer=False)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x
            for layer in self.model.encoder.layer:
                output = layer(hidden)
                hidden = output if isinstance(output, Tensor) else output[0]
            return hidden

    return Embedded()


def _yolo() -> nn.Module:
    model = importlib.import_module("ultralytics").YOLO("yolo11n.yaml").model
    for module in model.modules():
        if hasattr(module, "export"):
            module.export, module.format = True, "onnx"
    return _First(model.float())


BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        name: (_torchvision(name), (3, 64, 64))
        for name in (
            "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
            "shufflenet_v2_x0_5", "regnet_y_400mf", "vgg11", "densenet121", "convnext_tiny",
            "swin_t", "segmentation.deeplabv3_mobilenet_v3_large",
            "segmentation.lraspp_mobilenet_v3_large",
        )
    },
    "bert": (_bert, (16, 64)),
    "yolo": (_yolo, (3, 64, 64)),
}  # fmt: skip
"""Name -> the model, and the shape of a sample."""


class _Random(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, shape: tuple[int, ...], calls: int = 4) -> None:
        generator = np.random.default_rng(1)
        drawn = (generator.standard_normal(shape, dtype=np.float32) for _ in range(calls))
        self._feeds = iter([{name: values} for values in drawn])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def prune(model: nn.Module, share: float) -> None:
    """Keep a share of the blocks of each weight, at the size that outputs had."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or module.weight.shape[1] < 4:
            continue
        rows, channels, *taps = module.weight.shape
        kept = torch.rand((rows, -(-channels // 4), *taps), generator=generator) < share
        mask = kept.repeat_interleave(4, 1)[:, :channels]
        module.weight.data *= mask * share**-0.5


def _settle(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Batch norms get the statistics of random images: activations keep their size."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(torch.randn(8, *shape, generator=torch.Generator().manual_seed(2)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def exported(name: str) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A pruned model as ONNX, with a free batch; and the shape of a sample."""
    build, shape = BUILDERS[name]
    torch.manual_seed(0)
    model = build().eval()
    prune(model, KEPT)
    _settle(model, shape)
    model.eval()
    batch = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.onnx.export(
            model, (torch.randn(2, *shape),), dynamo=True, verbose=False, opset_version=18,
            dynamic_shapes=({0: batch},), input_names=["x"],
        )  # fmt: skip
    assert program is not None
    TransposeWeights()(program.model)
    return ir.to_proto(program.model), shape


def quantized(
    name: str, path: Path, *, signed: bool = False
) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float32]]]:
    """A pruned model in ONNX Runtime's QDQ form, and random input for it."""
    model, shape = exported(name)
    with _quiet():
        quantize_static(
            model, str(path), _Random("x", (2, *shape)), quant_format=QuantFormat.QDQ,
            per_channel=True, weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        )  # fmt: skip
    feeds = {"x": np.random.default_rng(3).standard_normal((2, *shape), dtype=np.float32)}
    return onnx.load(path), feeds
