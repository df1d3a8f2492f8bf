"""Hugging Face's own Trainer trains sparse models, and chooses none that is too dense."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import st3fx
from st3fx.errors import InputError, StateError, TargetWarning
from st3fx.graphs.graph import Variant

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that it looks for
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        EarlyStoppingCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from st3fx.integrations.transformers import SparseCallback, example_calls, sparsify

pytestmark = pytest.mark.slow


class Words(Dataset[dict[str, Tensor]]):
    """The first word says the class."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        words = torch.randint(1, 50, (8,), generator=torch.Generator().manual_seed(index))
        mask = torch.ones(8, dtype=torch.long)
        return {"input_ids": words, "attention_mask": mask, "labels": words[0] % 2}


class Net(nn.Module):
    """Called as Trainer calls the models of its own library, and quicker to convert."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 2)
        self.drop = nn.Dropout(0.1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **loss: Any
    ) -> dict[str, Tensor]:
        words = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        logits = self.head(self.drop(self.hidden(words[:, 0]).relu()))
        if labels is None:
            return {"logits": logits}
        count = loss.get("num_items_in_batch")
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss": total / (len(labels) if count is None else count), "logits": logits}


def make_model() -> Any:
    torch.manual_seed(0)
    return Net()


def make_bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def make_trainer(folder: Path, model: Any = None, **kwargs: Any) -> Any:
    """Of 2 epochs with 4 updates each, of 2 batches each."""
    for_trainer = ("callbacks", "compute_metrics", "model_init", "compute_loss_func")
    own = {name: kwargs.pop(name) for name in for_trainer if name in kwargs}
    settings: dict[str, Any] = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "save_strategy": "steps",
        "save_steps": 1, "per_device_eval_batch_size": 16, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, "learning_rate": 1e-3,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **(settings | kwargs))
    model = make_model() if model is None and "model_init" not in own else model
    return Trainer(model, args, train_dataset=Words(), eval_dataset=Words(), **own)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def zeros(model: nn.Module) -> float:
    """Of the linear layers."""
    found = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


class Watch(TrainerCallback):
    """What other callbacks see."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.sparsifier: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(self.sparsifier.steps)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logs.append(dict(kwargs["logs"]))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_trainer_runs_graphs_counts_updates_and_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    watch = Watch()
    model = make_bert()
    trainer = make_trainer(tmp_path, model, callbacks=[watch], save_strategy="no", bf16=mixed)
    before = torch.get_rng_state()
    watch.sparsifier = sparsify(trainer, st3fx.ST3(0.8))
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    forwards, graphs = [], []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    run = Variant.__call__

    def counted(*args: Any) -> Any:
        graphs.append(1)
        return run(*args)

    monkeypatch.setattr(Variant, "__call__", counted)
    trainer.train()
    assert watch.steps == [*range(1, 9)]
    assert len(graphs) == len(forwards) > 16
    logged = [logs for logs in watch.logs if "loss" in logs]
    assert [logs["sparsity"] for logs in logged] == sorted(logs["sparsity"] for logs in logged)
    assert logged[-1]["sparsity"] == pytest.approx(0.8, abs=2e-3)
    assert logged[-1]["threshold"] > 0
    assert "eval_sparsity" in [logs for logs in watch.logs if "eval_loss" in logs][-1]
    assert trainer.state.log_history[-2]["eval_sparsity"] == logged[-1]["sparsity"]
    assert trainer.model is model
    assert type(model) is BertForSequenceClassification
    assert zeros(model) == pytest.approx(0.8, abs=2e-3)
    trainer.save_model(str(tmp_path / "sparse"))
    again = BertForSequenceClassification.from_pretrained(tmp_path / "sparse")
    assert zeros(again) == zeros(model)
    assert again.state_dict().keys() == make_bert().state_dict().keys()
    with pytest.raises(StateError, match="is not converted, or has been folded: convert it"):
        trainer.train()


def falling() -> Any:
    """Metrics that get worse with every evaluation."""
    values = iter(range(100, 0, -1))
    return lambda _: {"score": float(next(values))}


PHASES = st3fx.ACDC(0.8, begin=0.125, phase=0.125, finish=0.25)
"""Of 8 steps: sparse after 1 and 3, dense until 6, sparse from there on."""


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(("method", "at"), [(st3fx.ST3(0.8), 4), (PHASES, 6)])
def test_the_best_is_one_that_has_reached_the_target(
    tmp_path: Path, method: st3fx.Method, at: int, stop: bool
) -> None:
    def train(sparse: bool) -> Any:
        trainer = make_trainer(
            tmp_path / str(sparse), compute_metrics=falling(), load_best_model_at_end=True,
            metric_for_best_model="score", greater_is_better=True,
            callbacks=[EarlyStoppingCallback(2)] if stop else [],
        )  # fmt: skip
        if sparse:
            sparsify(trainer, method)
        trainer.train()
        return trainer

    plain, trainer = train(sparse=False), train(sparse=True)
    assert plain.state.best_global_step == 1  # what would be the best
    assert plain.state.global_step == (3 if stop else 8)
    assert trainer.state.best_global_step == at  # half of 8 steps, where the ramp ends; or 6
    assert trainer.state.global_step == (at + 2 if stop else 8)
    assert zeros(trainer.model) == pytest.approx(0.8, abs=2e-3)
    saved = torch.load(tmp_path / "True" / f"checkpoint-{at}" / "optimizer.pt")
    assert saved["state"]  # the checkpoint of the best is there


def test_a_training_that_ends_early_is_not_folded(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=3, load_best_model_at_end=True, metric_for_best_model="loss"
    )
    calls = example_calls(trainer)
    st3fx.convert(trainer.model, calls, st3fx.ST3(0.8), total_steps=8, inplace=True)
    sparsifier = sparsify(trainer)
    with pytest.warns(TargetWarning, match=r"ends at sparsity 0\.\d+ of the target 0.8: .* not"):
        trainer.train()
    assert (sparsifier.steps, sparsifier.total_steps) == (3, 8)
    assert trainer.state.best_model_checkpoint is None
    trainer.args.max_steps = 8
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert zeros(trainer.model) == pytest.approx(0.8, abs=2e-3)


def test_a_sparse_phase_with_a_dense_one_to_come_is_not_folded(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3, save_strategy="no")
    calls = example_calls(trainer)
    st3fx.convert(trainer.model, calls, PHASES, total_steps=8, inplace=True)
    sparsifier = sparsify(trainer)
    with pytest.warns(TargetWarning, match=r"ends in a sparse phase of acdc that is not its last"):
        trainer.train()
    assert sparsifier.sparsity == pytest.approx(0.8, abs=2e-3)
    assert not sparsifier.reached


@pytest.mark.parametrize(("method", "at"), [(st3fx.ST3(0.8), 2), (st3fx.DST(alpha=1e-3), 5)])
def test_a_training_goes_on_bit_for_bit(tmp_path: Path, method: Any, at: int) -> None:
    whole = make_trainer(tmp_path / "whole")
    sparsify(whole, method, fold=False)
    whole.train()
    again = make_trainer(tmp_path / "again")
    sparsifier = sparsify(again, method, fold=False)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    assert sparsifier.steps == 8
    expected, found = weights(whole.model), weights(again.model)
    assert expected.keys() == found.keys()
    assert any("st3fx_" in name for name in found)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_what_a_scaler_skips_does_not_count(tmp_path: Path) -> None:
    watch = Watch()
    trainer = make_trainer(tmp_path, save_strategy="no", eval_strategy="no", callbacks=[watch])
    watch.sparsifier = sparsify(trainer, st3fx.ST3(0.8))
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = trainer.compute_loss
    calls: list[int] = []

    def of(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return loss(*args, **kwargs) * (torch.inf if len(calls) in (3, 4, 9) else 1.0)

    trainer.compute_loss = of
    trainer.train()
    assert watch.steps == [1, 1, 2, 3, 3, 4, 5, 6]


def test_models_of_an_init_function(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model_init=make_model, save_strategy="no")
    sparsify(trainer, st3fx.ST3(0.8))
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert zeros(trainer.model) == pytest.approx(0.8, abs=2e-3)


def test_calls_are_those_of_the_trainer(tmp_path: Path) -> None:
    def names(trainer: Any) -> list[list[str]]:
        return [sorted(call.kwargs) for call in example_calls(trainer)]

    inputs = ["attention_mask", "input_ids"]
    count = "num_items_in_batch"
    assert names(make_trainer(tmp_path)) == [[*inputs, "labels", count]]
    smooth = make_trainer(tmp_path, make_bert(), label_smoothing_factor=0.1)
    assert [["labels" in one for one in names(smooth)]] == [[False]]
    with pytest.raises(InputError, match="no train_dataset to take an example from"):
        example_calls(Trainer(make_model(), TrainingArguments(str(tmp_path), use_cpu=True)))


def test_mistakes_are_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(StateError, match="Net is not converted, or has been folded"):
        SparseCallback(trainer.model)
    sparsify(trainer, st3fx.ST3(0.8))
    with pytest.raises(InputError, match=r"is converted already, .* leave the method out"):
        sparsify(trainer, st3fx.ST3(0.8))
    trainer.optimizer = torch.optim.SGD(make_model().parameters(), 0.1)
    with pytest.raises(StateError, match="SGD trains none of the converted model's weights"):
        trainer.train()
