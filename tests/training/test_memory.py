"""What a training is expected to need in memory, and what a machine says it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import st3fx
from st3fx.data.base import Data
from st3fx.training import memory
from st3fx.training.memory import Needed, needed
from st3fx.training.settings import Settings


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return logits


def _data(samples: int = 64) -> Data:
    dataset = TensorDataset(torch.randn(samples, 3, 16, 16), torch.arange(samples) % 10)
    loader = DataLoader(dataset, batch_size=8)
    return Data(loader, loader, "noise", (3, 16, 16), 10)


def test_what_a_training_needs() -> None:
    model, _ = st3fx.convert(Net(), torch.randn(2, 3, 16, 16))
    data = _data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = needed(model, data, Settings(batch_size=32, opt="adamw"))
    assert found is not None
    parameters = sum(p.numel() for p in model.parameters())
    assert found.gradients == 4 * parameters
    assert found.optimizer == 2 * found.gradients
    assert found.effective == 4 * (8 * 27 + 8 * 256 * 10)
    # Input, the convolution's output, the norm's, relu's: three of 8 channels and one of 3.
    sample = 4 * 16 * 16 * (3 + 8 + 8)
    assert 32 * sample <= found.activations <= 32 * (sample + 4 * 16 * 16 * 8) + 2**12
    # Nothing was changed, in the model or of the random numbers.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    plain = needed(model, _data(), Settings(batch_size=64, momentum=0.0))
    assert plain is not None
    assert plain.optimizer == 0
    assert plain.activations == pytest.approx(2 * found.activations, rel=0.05)


def test_the_line() -> None:
    gb = 10**9
    found = Needed(gradients=gb, effective=gb, optimizer=2 * gb, activations=16 * gb, batch=64)
    assert found.warning(20 * gb) is None
    said = found.warning(12 * gb)
    assert said is not None
    assert said.startswith("memory is expected to run out: 20 GB more are needed")
    assert "activations of 64 samples 16 GB" in said
    assert said.endswith("12 GB are free: a --batch-size of about 32 fits, with "
                         "--grad-accum-steps for as many samples a step")  # fmt: skip
    assert "a smaller model or a larger machine" in str(found.warning(3 * gb))


def test_what_limits_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "groups" / "user" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    above = group.parent
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 1\ninactive_file 300")):
        (above / f"memory.{name}").write_text(f"{text}\n")
    own = tmp_path / "own"
    own.write_text("0::/user/job\n")
    assert memory._of_groups(tmp_path / "groups", own) == [400]
    old = tmp_path / "groups" / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("5000")
    (old / "memory.usage_in_bytes").write_text("1000")
    own.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")
    assert memory._of_groups(tmp_path / "groups", own) == [4000]
    assert memory._of_groups(tmp_path / "groups", tmp_path / "none") == []
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
    assert memory._of_machine(info) == [7 * 1024]
    monkeypatch.setattr(memory, "_of_machine", lambda: [6000])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    free = memory.available(torch.device("cpu"))
    assert free is not None
    assert free <= 2000
    assert memory.available(torch.device("meta")) is None
