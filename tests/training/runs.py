"""Short runs of the driver: a small network on the data that comes with st3fx."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch

from st3fx.commands.train import train_spec
from st3fx.files.seal import write_sealed
from st3fx.training.folder import RunFolder
from st3fx.training.recipes import resolve
from st3fx.training.report import EvalRow, Silent, TrainResult, TrainRow
from st3fx.training.settings import Settings
from tests.models import write

NET = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 5, stride=4, padding=2)
            self.norm = nn.BatchNorm2d(4)
            self.drop = nn.Dropout(0.2)
            self.head = nn.Linear(4 * 7 * 7, 10)

        def forward(self, x):
            return self.head(self.drop(self.norm(self.stem(x)).relu().flatten(1)))
"""
"""Batch norm and dropout: what a resumed run could get wrong."""


LOADERS = """
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Noise(Dataset):
        "Draws from the global generator, as transforms do."
        def __init__(self, size):
            self.size = size
        def __len__(self):
            return self.size
        def __getitem__(self, index):
            return torch.full((1, 28, 28), index % 10 / 10) + torch.randn(1, 28, 28), index % 10

    def make_loaders(batch_size, seed):
        return (DataLoader(Noise(140), batch_size=30, shuffle=True),
                DataLoader(Noise(20), batch_size=5))
"""
"""Loaders as users have them: transforms that draw from the global generators."""


def settings(folder: Path, **values: Any) -> Settings:
    """Three epochs of five steps; the model is written beside the run."""
    model = folder / "net.py"
    if not model.exists():
        write(folder, "net.py", NET)
    base = {
        "spec": str(model), "output_dir": str(folder / "run"), "epochs": 3, "batch_size": 800,
        "log_interval": 2, "bn_recalibrate": 2,
    }  # fmt: skip
    return resolve(base | values)


class Recorder(Silent):
    """Keeps what it is told, and does something at one step."""

    def __init__(self, at: int | None = None, do: Any = None) -> None:
        self.rows: list[TrainRow] = []
        self.scores: list[EvalRow] = []
        self.notes: list[str] = []
        self.stages: list[str] = []
        self._at, self._do = at, do

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def step(self, step: int) -> None:
        if step == self._at:
            self._do()

    def train(self, row: TrainRow) -> None:
        self.rows.append(row)

    def evaluation(self, row: EvalRow) -> None:
        self.scores.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)


class CrashError(Exception):
    """Stands for a process that is gone: nothing is saved."""


def crash() -> None:
    raise CrashError


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def resumed(of: Settings, report: Silent | None = None) -> TrainResult:
    """Go on with the run of these settings."""
    return train_spec(of, checkpoint=folder_of(of).last, report=report)


def folder_of(of: Settings) -> RunFolder:
    return RunFolder(Path(str(of.output_dir)))


def state(of: Settings) -> dict[str, Any]:
    """The newest checkpoint."""
    content: dict[str, Any] = torch.load(folder_of(of).last, weights_only=True)
    return content


def save_state(path: Path, content: dict[str, Any]) -> None:
    """A checkpoint with any content, and its digest."""
    with path.open("wb") as file:
        write_sealed(file, lambda to: torch.save(content, to))


def rows(of: Settings) -> list[dict[str, Any]]:
    """The log, without what depends on the clock."""
    lines = folder_of(of).log.read_text().splitlines()
    clock = ("rate", "digest")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def require_equal(first: Any, second: Any, where: str = "") -> None:
    """Bit for bit, in nested dicts and lists."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            require_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            require_equal(a, b, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def require_same_run(first: Settings, second: Settings) -> None:
    """The same weights, optimizer, averages, random generators, log and files."""
    a, b = state(first), state(second)
    for content in (a, b):
        for name in ("settings", "log_bytes", "log_sha256"):  # folders, and digits of the rate
            del content[name]
    require_equal(a, b)
    assert rows(first) == rows(second)
    for name in ("folded", "bundle"):
        x, y = getattr(folder_of(first), name), getattr(folder_of(second), name)
        x, y = (p / "model.safetensors" if p.is_dir() else p for p in (x, y))
        assert x.read_bytes() == y.read_bytes(), name
