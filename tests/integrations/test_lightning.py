"""Lightning's own Trainer trains sparse models, and chooses none that is too dense."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import st3fx
from st3fx.errors import InputError, StateError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that it looks for
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import (
        EarlyStopping,
        EMAWeightAveraging,
        ModelCheckpoint,
        StochasticWeightAveraging,
    )
    from lightning.pytorch.plugins import MixedPrecision

    from st3fx.integrations.lightning import SparseCallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Lightning's advice: workers, loggers, old checkpoints
    pytest.mark.filterwarnings("error::UserWarning:st3fx"),
]

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(X, (X[:, 0] > 0).long())


class Net(LightningModule):
    """Two layers; ``score`` gets worse with every evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2)
        )
        self.example_input_array = torch.zeros(4, 8)
        self.score = 100.0

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            self.score -= 1
            self.log("score", self.score)
        self(batch[0])

    def test_step(self, batch: Any, index: int) -> None:
        self.log("zeros", zeros(self))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def zeros(model: nn.Module) -> float:
    found = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


class Watch(Callback):
    """Counts steps and looks at what is logged."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        own = next(c for c in trainer.callbacks if isinstance(c, SparseCallback))
        assert own.driver is not None
        self.steps.append(own.driver.sparsifier.steps)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def make_trainer(folder: Path, *callbacks: Any, **kwargs: Any) -> Trainer:
    """Of 8 epochs with 2 updates each, of 2 batches each."""
    settings: dict[str, Any] = {
        "max_epochs": 8, "accumulate_grad_batches": 2, "accelerator": "cpu", "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "num_sanity_val_steps": 0, "enable_checkpointing": False,
    }  # fmt: skip
    settings |= kwargs
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **settings)


def loader(shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(DATA, 8, shuffle=shuffle)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_fit_counts_updates_logs_and_folds(tmp_path: Path, clip: float | None) -> None:
    own, watch, module = SparseCallback(st3fx.ST3(0.8)), Watch(), make()
    make_trainer(tmp_path, own, watch, gradient_clip_val=clip).fit(module, loader())
    assert watch.steps == [step // 2 for step in range(1, 33)]
    assert own.driver is not None
    assert own.driver.sparsifier.total_steps == 16
    sparsity = [logged["sparsity"] for logged in watch.logged]
    assert sparsity == sorted(sparsity)
    assert sparsity[0] < 0.7
    assert sparsity[-1] > 0.79
    assert watch.logged[-1]["threshold"] > 0
    assert type(own.folded) is Net
    assert zeros(own.folded) == zeros(module) == pytest.approx(0.8, abs=3e-3)
    assert own.folded.state_dict().keys() == make().state_dict().keys()
    assert torch.equal(own.folded.eval()(X), module.eval()(X))
    fresh = make()
    fresh.load_state_dict(own.folded.state_dict())


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("method", [
    st3fx.ST3(0.8), st3fx.ACDC(0.8, begin=0.125, phase=0.125, finish=0.5),
], ids=["st3", "acdc"])  # fmt: skip
def test_the_best_is_one_that_has_reached_the_target(
    tmp_path: Path, method: st3fx.Method, stop: bool
) -> None:
    """The schedule ends with step 8 of 16, in the fourth epoch of eight.

    A sparse phase ends with the first epoch, a dense one fills the second, and the last begins.
    """

    def fit(*first: Any) -> tuple[Trainer, ModelCheckpoint]:
        best = ModelCheckpoint(tmp_path / str(len(first)), monitor="score", mode="max")
        stopping = [EarlyStopping("score", patience=2, mode="max")] if stop else []
        trainer = make_trainer(tmp_path, *first, *stopping, best, enable_checkpointing=True)
        trainer.fit(make(), loader(), loader())
        return trainer, best

    trainer, best = fit()
    assert best.best_model_path.endswith("epoch=0-step=2.ckpt")  # what would be the best
    assert trainer.current_epoch == (3 if stop else 8)
    trainer, best = fit(SparseCallback(method))
    assert best.best_model_path.endswith("epoch=3-step=8.ckpt")
    assert [p.name for p in (tmp_path / "1").iterdir()] == ["epoch=3-step=8.ckpt"]
    assert trainer.current_epoch == (6 if stop else 8)
    (tested,) = trainer.test(dataloaders=loader(), ckpt_path="best", verbose=False)
    assert tested["zeros"] == pytest.approx(0.8, abs=3e-3)
    assert "check_monitor_top_k" not in vars(best)


@pytest.mark.parametrize(("threshold", "epochs"), [("stopping_threshold", 4), ("finite", 1)])
def test_early_stopping_by_other_reasons(tmp_path: Path, threshold: str, epochs: int) -> None:
    """A score that is good enough waits for the target, NaN does not."""
    module = make()
    if threshold == "finite":
        module.score = float("nan")
        stopping = EarlyStopping("score", mode="max")
    else:
        stopping = EarlyStopping("score", mode="max", patience=99, stopping_threshold=1.0)
    trainer = make_trainer(tmp_path, stopping, SparseCallback(st3fx.ST3(0.8)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # folded before its target
        trainer.fit(module, loader(), loader())
    assert trainer.current_epoch == epochs
    assert stopping.stopping_threshold == (None if threshold == "finite" else 1.0)


@pytest.mark.parametrize("method", [st3fx.ST3(0.8), st3fx.DST(alpha=1e-3)])
@pytest.mark.parametrize("average", [False, True])
def test_a_fit_goes_on_bit_for_bit(tmp_path: Path, method: Any, average: bool) -> None:
    def fit(folder: str, at: Any = None) -> dict[str, Tensor]:
        every = ModelCheckpoint(tmp_path / folder, save_top_k=-1, every_n_epochs=1)
        averages = [EMAWeightAveraging(decay=0.5)] if average else []
        callbacks = [SparseCallback(method), *averages, every]
        trainer = make_trainer(tmp_path, Seeds(), *callbacks, enable_checkpointing=True)
        module = make()
        trainer.fit(module, loader(), loader(), ckpt_path=at)
        return {name: value.clone() for name, value in module.state_dict().items()}

    expected = fit("whole")
    for at in ("epoch=1-step=4.ckpt", "epoch=5-step=12.ckpt"):
        found = fit(at, tmp_path / "whole" / at)
        assert expected.keys() == found.keys()
        assert any("st3fx_" in name for name in found)
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


class Seeds(Callback):
    """Lightning's checkpoints hold no generators: the numbers of a batch follow from its number."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(100 * trainer.current_epoch + index)


def test_what_a_scaler_skips_does_not_count(tmp_path: Path) -> None:
    class Overflows(Net):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step(batch, index) * (torch.inf if index == 1 else 1.0)

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    watch = Watch()
    trainer = make_trainer(
        tmp_path, SparseCallback(st3fx.ST3(0.8)), watch, plugins=[precision],
        accumulate_grad_batches=1, max_epochs=2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Overflows(), loader())
    assert watch.steps == [1, 1, 2, 3, 4, 4, 5, 6]


@pytest.mark.parametrize(
    "average", [EMAWeightAveraging(decay=0.5), StochasticWeightAveraging(1e-2, swa_epoch_start=5)]
)
def test_averages_are_folded_with_their_own_threshold(tmp_path: Path, average: Any) -> None:
    with pytest.raises(StateError, match="Averaging has copied the module before it was conv"):
        make_trainer(tmp_path, average, SparseCallback()).fit(make(), loader())
    own, module = SparseCallback(st3fx.ST3(0.8)), make()
    make_trainer(tmp_path, own, average).fit(module, loader(), loader())
    assert own.folded is not None
    assert zeros(own.folded) == pytest.approx(0.8, abs=3e-3)
    for theirs, ours in zip(average._average_model.parameters(), module.parameters(), strict=True):
        assert torch.equal(theirs, ours)  # the averages are what was folded


def test_a_converted_part_of_a_module(tmp_path: Path) -> None:
    module = make()
    st3fx.convert(module.net, X, st3fx.ST3(0.8), inplace=True)
    with pytest.raises(InputError, match="is converted already, with a method of its own"):
        make_trainer(tmp_path, SparseCallback(st3fx.ST3(0.8))).fit(module, loader())
    own = SparseCallback()
    make_trainer(tmp_path, own).fit(module, loader())
    assert own.folded is not None
    assert zeros(own.folded) == pytest.approx(0.8, abs=3e-3)
    assert not any(name.startswith("st3fx") for m in own.folded.modules() for name in vars(m))


def test_an_example_is_asked_for(tmp_path: Path) -> None:
    module: Any = make()
    module.example_input_array = None
    with pytest.raises(InputError, match="Net has no example_input_array"):
        make_trainer(tmp_path, SparseCallback()).fit(module, loader())
    make_trainer(tmp_path, SparseCallback(example_inputs=X), max_epochs=2).fit(module, loader())
