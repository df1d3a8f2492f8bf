"""Probes of the main path: each does what a command does, on something tiny."""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from st3fx.doctor.probe import AbsentError
from st3fx.version import VERSION


class Tiny(nn.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Images of one channel, NCHW, to three numbers each."""
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


IMAGES = (2, 1, 6, 6)
MACS = 2 * (16 * 9 * 4 + 4 * 3)
"""Multiplications that a dense ``Tiny`` takes for ``IMAGES``.

4 × 4 positions of nine taps, four times; then 4 × 3.
"""


def torch_build() -> str:
    """Version, what it was built for, and that it computes."""
    ones = torch.ones(3, requires_grad=True)
    (ones * torch.arange(3.0)).sum().backward()
    if ones.grad is None or ones.grad.tolist() != [0.0, 1.0, 2.0]:
        raise RuntimeError(f"a gradient is {ones.grad} and not [0, 1, 2]")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    built = built or (f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU")
    return f"{torch.__version__}, built for {built}"


def packages() -> str:
    """Everything that st3fx needs is there, in a version that is new enough."""
    try:
        wanted = importlib.metadata.requires("st3fx") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise AbsentError(
            f"st3fx {VERSION} runs from a folder and is not installed", "pip install -e ."
        ) from error
    found = []
    for line in wanted:
        match = re.match(r"([\w.-]+)(?:>=([\d.]+))?", line)
        if match is None or "extra ==" in line:
            continue
        name, least = match.groups()
        version = importlib.metadata.version(name)
        if least and _numbers(version) < _numbers(least):
            raise RuntimeError(f"{name} {version} is too old: st3fx needs {least}")
        found.append(f"{name} {version}")
    return ", ".join(found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # type: ignore[index]


def shipped_data() -> str:
    """The subset of Fashion-MNIST that comes with st3fx is whole."""
    from st3fx.data import DataSettings, make_data

    data = make_data(DataSettings(name="fashion-mnist-mini", batch_size=100))
    images, labels = next(iter(data.train))
    if tuple(images.shape) != (100, 1, 28, 28) or not images.isfinite().all():
        raise RuntimeError(f"a batch has the shape {tuple(images.shape)}")
    sizes = len(data.train.dataset), len(data.test.dataset)  # type: ignore[arg-type]
    return f"{sizes[0]:,} training and {sizes[1]:,} test images, {len(labels.unique())} classes"


def convert_and_fold() -> str:
    """A model is converted, compared, pruned and folded; the results are equal bit for bit."""
    import st3fx

    torch.manual_seed(0)
    images = torch.randn(IMAGES)
    model, sparsifier = st3fx.convert(Tiny(), images)
    sparsifier.set_sparsity(0.5)
    sparse = model.eval()(images)
    folded = st3fx.fold(model)
    if not torch.equal(folded(images), sparse):
        raise RuntimeError("the folded model computes something else")
    state = folded.state_dict()
    zeros = sum(int((state[name] == 0).sum()) for name in ("conv.weight", "head.weight"))
    if zeros != 24:
        raise RuntimeError(f"{zeros} of 48 weights are zero, not half of them")
    return "a small model: 2 sites, equal outputs and gradients; folded, equal bit for bit"


def train() -> str:
    """A run of a few steps, with its files."""
    from st3fx.commands.train import train_spec
    from st3fx.training.recipes import resolve

    with tempfile.TemporaryDirectory() as folder:
        values = {"spec": "st3fx:lenet_300_100", "epochs": 1, "batch_size": 1000,
                  "bn_recalibrate": 0, "output_dir": str(Path(folder) / "run")}  # fmt: skip
        result = train_spec(resolve(values))
    return f"{result.steps} steps with Accelerate, to {result.sparsity:.0%} sparsity"


def export() -> str:
    """An ONNX file, run beside the model."""
    import st3fx
    from st3fx.export.parity import providers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        result = st3fx.export_onnx(Tiny().eval(), torch.randn(IMAGES), path)
    worst = max(row.relative for row in result.parity)
    return (
        f"opset {result.opset}, ONNX Runtime {importlib.metadata.version('onnxruntime')} within "
        f"{worst:.1g} of PyTorch; it has {', '.join(providers())}"
    )


def count() -> str:
    """Multiplications of a model, by hand and by st3fx."""
    import st3fx

    found = st3fx.count_flops(Tiny().eval(), torch.randn(IMAGES)).dense_macs
    if found != MACS:
        raise RuntimeError(f"counted {found} multiplications in a model that has {MACS}")
    return f"{found:,} multiplications in a small model, as by hand"
