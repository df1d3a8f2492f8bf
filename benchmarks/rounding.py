"""What 8-bit weights cost: the ranges of an EfficientNet's, and what finetuning gives back.

    python -m benchmarks.rounding efficientnet
    python -m benchmarks.rounding finetune --epochs 2 --images 12800

The first quantizes an EfficientNet-B0 with random weights three times: with all of an int8
(``full``), with so much room that no CPU overflows (``safe``), and with the 7 bits of ONNX
Runtime's ``reduce_range``. Figures are decibels of signal over noise at the outputs against fp32,
over images that calibration has not seen, as a session computes them on this CPU, and for ``full``
in exact arithmetic too: without VNNI, x86 adds two products in 16 bits, which overflows.

The second trains a ResNet-20 on Fashion-MNIST to 90 % zeros in blocks of four, quantizes it, and
finetunes the file of integers: accuracies on the test data.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import st3fx
from benchmarks import cases, record
from benchmarks.quantized import settled
from st3fx import native
from st3fx.commands.train import train_spec
from st3fx.data import DataSettings, make_data
from st3fx.export.write import save_proto
from st3fx.quantization.calibrate import find_ranges, quiet
from st3fx.quantization.measure import Run, compare, opened
from st3fx.quantization.qdq import quantized, read_source
from st3fx.quantization.settings import Settings
from st3fx.training.settings import Settings as TrainingSettings

SEED = 0


def main() -> None:
    """Measure one of them, print and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("efficientnet", "finetune"))
    parser.add_argument("--epochs", type=int, default=2, help="of the training in fp32")
    parser.add_argument("--images", type=int, default=12_800, help="to finetune on")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-path")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = efficientnet() if options.what == "efficientnet" else finetuned(options)
    output = options.output or record.RESULTS / f"{options.what}_{native.isa()}.json"
    record.write(output, {"environment": record.environment(isa=native.isa()), **found})
    table = Table(*found)
    table.add_row(*(str(value) for value in found.values()))
    Console().print(table)


def efficientnet() -> dict[str, Any]:
    """Decibels for each range of the weights."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(40, 3, 224, 224, generator=generator)
    model = settled(cases.build("efficientnet_b0"), images[:8])
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        exported = folder / "fp32.onnx"
        st3fx.export_onnx(model, images[:2], exported, verify=False)
        source = read_source(exported, folder)
        name = source.model.graph.input[0].name
        feeds = [{name: part.numpy()} for part in images.split(8)]
        ranges = find_ranges(source.path, feeds[:4], source.operators(), Settings())
        wanted = [opened(exported)(feed) for feed in feeds[4:]]

        def decibels(run: Run) -> float:
            return round(compare(wanted, run, feeds[4:]).worst[1] or 0.0, 1)

        found: dict[str, Any] = {}
        for weights in ("full", "safe"):
            path = folder / f"{weights}.onnx"
            save_proto(quantized(source, ranges, (), weights), path)
            found[weights] = decibels(opened(path))
            if weights == "full":
                found["full, exact"] = decibels(opened(path, optimized=False))
        found["reduce_range"] = decibels(opened(_reduced(exported, folder, feeds[:4])))
    return found


def _reduced(exported: Path, folder: Path, feeds: Sequence[dict[str, Any]]) -> Path:
    """The file of ONNX Runtime's own quantizer, with weights of 7 bits."""
    from onnxruntime.quantization import (  # noqa: PLC0415 (takes a while)
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    path = folder / "reduced.onnx"
    with quiet():
        quantize_static(
            onnx.load(exported), str(path), Reader(), quant_format=QuantFormat.QDQ,
            per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )  # fmt: skip
    return path


def finetuned(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracies in per cent: fp32, integers, and these finetuned."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        train_spec(TrainingSettings(
            spec="st3fx:resnet20", data=options.data, data_path=options.data_path, sparsity=0.9,
            granularity="block:4", epochs=options.epochs, seed=SEED, output_dir=str(folder / "run"),
        ))  # fmt: skip
        model = st3fx.fold(st3fx.load_bundle(folder / "run" / "model.st3fx")).eval()
        data = make_data(DataSettings(
            name=options.data, path=options.data_path, seed=SEED, augment=False,
        ))  # fmt: skip
        batches: list[Tensor] = []
        for images, _ in data.train:
            batches.append(images)
            if len(batches) * len(images) >= options.images:
                break
        test = list(data.test)
        found: dict[str, Any] = {"images": sum(map(len, batches))}
        for epochs in (0, 1):
            result = st3fx.quantize(
                model, batches[:3], folder / "net.onnx", evaluate=_accuracy(test), rank=False,
                finetune=epochs, finetune_batches=batches, seed=SEED,
            )  # fmt: skip
            assert result.accuracy is not None
            found["fp32"] = round(100 * result.accuracy.fp32, 2)
            name = "integers, finetuned" if epochs else "integers"
            found[name] = round(100 * result.accuracy.int8, 2)
    return found


def _accuracy(test: Sequence[tuple[Tensor, Tensor]]) -> Callable[[Callable[..., Any]], float]:
    def evaluate(predict: Callable[..., Any]) -> float:
        right = [predict(images).argmax(1) == targets for images, targets in test]
        return float(np.mean(torch.cat(right).numpy()))

    return evaluate


if __name__ == "__main__":
    main()
