"""A run that was stopped goes on bit for bit, whenever and however it was stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from st3fx.commands.train import train_spec
from st3fx.data import Data
from st3fx.training.batches import Batches
from st3fx.training.interrupt import Interrupted
from st3fx.training.report import EvalRow
from tests.models import write
from tests.training.runs import (
    LOADERS,
    CrashError,
    Recorder,
    crash,
    ctrl_c,
    folder_of,
    require_same_run,
    resumed,
    settings,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {"clip_grad": 1.0, "label_smoothing": 0.1, "warmup_epochs": 1.0},
    "accumulation": {"batch_size": 300, "grad_accum_steps": 3},  # 14 batches: 5 steps, one of 2
    "average": {"model_ema": True, "model_ema_decay": 0.9},
    "adamw": {"opt": "adamw", "lr": 1e-2, "update_every": 2, "channels_last": True},
    "learned": {"method": "dst", "sched": "multistep", "milestones": (1, 2)},
    "drawn": {
        "draw_sparsity": (0.5, 0.95),
        "ramp": (0.0, 0.6),
        "model_ema": True,
        "model_ema_decay": 0.9,
        "update_every": 2,
    },
    "cycles": {"method": "lrr", "method_options": ("cycles=3",), "warmup_epochs": 0.4},
    "masks": {
        "method": "probmask",
        "method_options": ("fixed=0.4",),
        "ramp": (0.0, 0.5),
    },
    "growing": {
        "method": "granet",
        "method_options": ("interval=2",),
        "ramp": (0.0, 0.8),
        "batch_size": 300,
        "grad_accum_steps": 3,
    },
    "phases": {
        "method": "acdc",
        "method_options": ("begin=0.1", "phase=0.15", "finish=0.3"),
        "model_ema": True,
        "model_ema_decay": 0.9,
    },
    "own loaders": {"data": "loaders.py"},
    "bf16": {"precision": "bf16"},
}

runs = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "loaders.py", LOADERS)
    return tmp_path


@pytest.mark.slow
@runs
def test_goes_on_bit_for_bit(in_folder: Path, variant: dict[str, Any]) -> None:
    whole = settings(in_folder, **variant, output_dir="whole")
    train_spec(whole)
    # Ctrl-C in the middle of an epoch; a crash later, which loses steps and a row of the log;
    # Ctrl-C at the end of an epoch.
    parts = settings(in_folder, **variant, output_dir="parts", checkpoint_every=3)
    with pytest.raises(Interrupted):
        train_spec(parts, report=Recorder(7, ctrl_c))
    with pytest.raises(CrashError):
        resumed(parts, Recorder(15, crash))
    assert folder_of(parts).last.exists()
    with pytest.raises(Interrupted):
        resumed(parts, Recorder(15, ctrl_c))
    resumed(parts)
    require_same_run(whole, parts)


@pytest.mark.slow
def test_each_step_can_be_the_last(in_folder: Path) -> None:
    """Stopped at every single step, in one run."""
    whole = settings(in_folder, output_dir="whole", epochs=2)
    train_spec(whole)
    parts = settings(in_folder, output_dir="parts", epochs=2)
    with pytest.raises(Interrupted):
        train_spec(parts, report=Recorder(1, ctrl_c))
    for step in range(2, 11):
        with pytest.raises(Interrupted):
            resumed(parts, Recorder(step, ctrl_c))
    resumed(parts)
    require_same_run(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["fashion-mnist-mini", "loaders.py"])
def test_stopped_while_it_evaluates(in_folder: Path, data: str) -> None:
    whole = settings(in_folder, output_dir="whole", eval_batch_size=100, data=data)
    train_spec(whole)

    class Stop(Recorder):
        def evaluation(self, row: EvalRow) -> None:
            super().evaluation(row)
            raise AssertionError("the evaluation went on")

    parts = settings(in_folder, output_dir="parts", eval_batch_size=100, data=data)
    with pytest.MonkeyPatch.context() as patch:
        calls = []

        def call_and_stop(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                ctrl_c()
            return real(*args)

        from st3fx.training import evaluate

        real = evaluate.sums
        patch.setattr(evaluate, "sums", call_and_stop)
        with pytest.raises(Interrupted):
            train_spec(parts, report=Stop())
    resumed(parts)
    require_same_run(whole, parts)


def test_asked_twice_it_stops_at_once(in_folder: Path) -> None:
    one = settings(in_folder)
    before = signal.getsignal(signal.SIGINT)  # ignored, in a job of a shell's background

    def twice() -> None:
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train_spec(one, report=Recorder(2, twice))
    assert not folder_of(one).last.exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_finished_run_is_finished_again(in_folder: Path) -> None:
    once = settings(in_folder, output_dir="once", epochs=1)
    first = train_spec(once)
    folder_of(once).folded.unlink()
    second = resumed(once)
    assert second.scores == first.scores
    assert second.layers == first.layers
    assert folder_of(once).folded.exists()


def test_a_sampler_with_a_generator_of_its_own(in_folder: Path) -> None:
    """Its order depends on the epoch alone, whatever was passed over before; epochs differ."""
    samples = TensorDataset(torch.arange(40.0), torch.zeros(40, dtype=torch.int64))
    generator = torch.Generator().manual_seed(7)
    train = DataLoader(samples, batch_size=4, shuffle=True, generator=generator)
    data = Data(train, DataLoader(samples), "mine", None, 1)
    batches = Batches(data, Accelerator(cpu=True), seed=0)

    def order(epoch: int) -> list[float]:
        return [value for _, (inputs, _) in batches.epoch(epoch) for value in inputs.tolist()]

    first, second = order(0), order(1)
    assert first != second
    assert [v for inputs, _ in batches.sample(1, 2) for v in inputs.tolist()] == second[:8]
    assert (order(1), order(0)) == (second, first)
