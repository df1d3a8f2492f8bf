"""What the loop computes, and how it ends when it must not go on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import st3fx
from st3fx.cli import main
from st3fx.commands.train import evaluate_spec, train_spec
from st3fx.data import make_data
from st3fx.data.base import DataSettings
from st3fx.errors import TrainError
from st3fx.loading.spec import load_spec
from st3fx.modules.state import seed_everything
from st3fx.sparsity.granularity import parse
from st3fx.sparsity.schedule import CubicSchedule
from st3fx.training import method as gauge
from st3fx.training import session
from st3fx.training.batches import Batches, Stream, rng_state, set_rng_state
from st3fx.training.log import Log
from st3fx.training.machine import make_accelerator, release
from st3fx.training.optim import learning_rate, make_optimizer, parameter_groups
from st3fx.training.settings import Settings
from tests.models import write
from tests.training.runs import (
    LOADERS,
    NET,
    Recorder,
    folder_of,
    require_equal,
    resumed,
    rows,
    settings,
    state,
)

PLAIN_NET = NET.replace("self.drop(", "(").replace("self.norm(", "(")
"""Without what makes a batch more than the sum of its samples."""


@pytest.mark.slow
def test_it_is_the_loop_that_a_user_would_write(tmp_path: Path) -> None:
    """The README's loop gives the same weights, bit for bit."""
    one = settings(tmp_path, epochs=2, weight_decay=1e-3, nesterov=True, warmup_epochs=1.0)
    train_spec(one)
    data = make_data(DataSettings(batch_size=800))
    model, sparsifier = st3fx.convert(
        load_spec(one.spec).model, data.example(2), st3fx.ST3(0.9), total_steps=10
    )
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    seed_everything(0)
    rates = [0.02, 0.04, 0.06, 0.08, 0.1]
    rates += [
        0.05 * (1 + torch.pi and 1 + __import__("math").cos(torch.pi * i / 5)) for i in range(5)
    ]
    for epoch in range(2):
        data.set_epoch(epoch)
        for x, y in data.train:
            optimizer.param_groups[0]["lr"] = rates.pop(0)
            loss = F.cross_entropy(model.train()(x), y) + sparsifier.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            sparsifier.step()
    require_equal(dict(model.state_dict()), dict(state(one)["model"]))


@pytest.mark.slow
def test_accumulated_steps_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Also the last step of an epoch, which has fewer batches: 8 are 3, 3 and 2."""
    write(tmp_path, "net.py", PLAIN_NET)
    one = settings(tmp_path, epochs=1, batch_size=500, grad_accum_steps=3)
    assert train_spec(one).steps == 3
    model, sparsifier = st3fx.convert(
        load_spec(one.spec).model, torch.randn(2, 1, 28, 28), total_steps=3
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    batches = list(make_data(DataSettings(batch_size=500)).train)
    for step, group in enumerate((batches[:3], batches[3:6], batches[6:])):
        optimizer.param_groups[0]["lr"] = learning_rate(one, step, 3)
        x, y = (torch.cat(parts) for parts in zip(*group, strict=True))
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state(one)["model"][name], value, rtol=1e-4, atol=1e-6)


def test_the_loss_is_not_a_number(tmp_path: Path) -> None:
    one = settings(tmp_path, lr=1e9, weight_decay=1e9, checkpoint_every=1, epochs=2)
    with pytest.raises(
        TrainError, match=r"is not a number any more at step \d+: start anew with a smaller --l"
    ):
        train_spec(one)
    # What was saved before is sound, and nothing else was written.
    kept = state(one)
    assert all(v.isfinite().all() for v in kept["model"].values())
    assert not folder_of(one).folded.exists()


def test_nothing_is_kept_when_the_first_row_is_not_a_number(tmp_path: Path) -> None:
    write(
        tmp_path,
        "net.py",
        NET.replace("return self.head(", "return 0 / x.sum() * 0 + 1e39 * self.head("),
    )
    with pytest.raises(TrainError, match=r"^the loss is not .* at step 2: .*; nothing was saved"):
        train_spec(settings(tmp_path, ramp=(0.5, 1.0)))


@pytest.mark.slow
def test_a_missed_sparsity_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when somebody counts the steps of an epoch in another way than the loop."""
    monkeypatch.setattr(
        session.Session,
        "follow",
        lambda self: self.sparsifier.step() if self.step % 5 else None,
    )
    one = settings(tmp_path, ramp=(0.0, 1.0))
    with pytest.raises(
        TrainError,
        match=r"the final sparsity is 0.\d+ where 0.9000 .* counted 12 of 15 .*the bundle is ",
    ):
        train_spec(one)
    assert folder_of(one).last.exists()
    assert folder_of(one).bundle.exists()


def test_a_layer_that_misses_its_own_target_is_an_error() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 7))
    example, method = torch.randn(2, 10), st3fx.ST3(0.9, sparsity_of={"1.*": 0.8})
    _, sparsifier = st3fx.convert(net, example, method, total_steps=1)
    sparsifier.set_sparsity(0.9)
    layers = gauge.layer_sparsity(sparsifier)
    gauge.require_own_targets(sparsifier, layers)
    assert gauge.own_targets(sparsifier) == {"1.weight": 0.8}
    off = layers | {"1.weight": 0.7}
    with pytest.raises(TrainError, match=r"1\.weight ends with a sparsity of 0.7000 where 0.8000"):
        gauge.require_own_targets(sparsifier, off)
    _, blocks = st3fx.convert(
        net, example, st3fx.ST3(0.9, sparsity_of={"1.*": 0.8}, granularity=parse("block:4"))
    )
    blocks.set_sparsity(0.9)
    gauge.require_own_targets(blocks, gauge.layer_sparsity(blocks))
    _, its = st3fx.convert(net, example, st3fx.DST())
    gauge.require_own_targets(its, {})
    with torch.no_grad():  # of zeros that it came with a layer may have more
        net.get_parameter("1.weight")[:, 1:] = 0
    _, came = st3fx.convert(net, example, method)
    came.set_sparsity(0.9)
    layers = gauge.layer_sparsity(came)
    assert layers["1.weight"] >= 0.9
    gauge.require_own_targets(came, layers)
    with pytest.raises(TrainError, match=r"0.7000"):
        gauge.require_own_targets(came, layers | {"1.weight": 0.7})


def test_rounding_is_no_miss() -> None:
    _, sparsifier = st3fx.convert(nn.Linear(10, 10), torch.randn(2, 10), total_steps=1)
    sparsifier.set_sparsity(0.9)
    layers = gauge.layer_sparsity(sparsifier)
    gauge.require_target(sparsifier, gauge.share(sparsifier, layers), 1)
    for share in (0.85, 0.95):
        with pytest.raises(TrainError, match=f"the final sparsity is {share}"):
            gauge.require_target(sparsifier, share, 1)
    _, its = st3fx.convert(nn.Linear(10, 10), torch.randn(2, 10), st3fx.DST())
    gauge.require_target(its, 0.1, 1)


@pytest.mark.slow
def test_a_budget_of_macs_is_met(tmp_path: Path) -> None:
    """The stem's 100 weights multiply 49 times each, the head's 1960 once."""
    one = settings(tmp_path, budget="macs", sparsity=0.6)
    layers = train_spec(one).layers
    macs = 4900 * layers["stem.weight"] + 1960 * layers["head.weight"]
    assert macs / 6860 == pytest.approx(0.6, abs=0.01)
    assert abs((100 * layers["stem.weight"] + 1960 * layers["head.weight"]) / 2060 - 0.6) > 0.05


@pytest.mark.slow
def test_mixed_precision_finds_weights_of_the_model_itself(tmp_path: Path) -> None:
    """Accelerate wraps the model's own forward, which is where these are held."""
    raw = "nn.Parameter(nn.Linear(10, 196).weight.detach())"
    text = NET.replace("nn.Linear(4 * 7 * 7, 10)", raw)
    write(tmp_path, "net.py", text.replace("self.head(", "(").replace("(1))", "(1)) @ self.head"))
    result = train_spec(settings(tmp_path, precision="bf16"))
    assert set(result.layers) == {"stem.weight", "head"}
    assert result.sparsity == pytest.approx(0.9, abs=1e-3)
    assert all(v.dtype == torch.float32 for v in st3fx.load_bundle(
        folder_of(settings(tmp_path)).bundle).parameters())  # fmt: skip


@pytest.mark.slow
def test_an_empty_layer_is_named(tmp_path: Path) -> None:
    write(tmp_path, "net.py", NET.replace(
        "self.drop =", "nn.init.constant_(self.stem.weight, 1e-4); self.drop ="))  # fmt: skip
    report = Recorder()
    result = train_spec(settings(tmp_path, lr=1e-6, epochs=1), report=report)
    assert result.empty == ("stem.weight",)
    assert [n for n in report.notes if n.startswith("stem.weight has no weight left: lower the")]


def test_learned_thresholds_are_trained_without_decay() -> None:
    for method, decay in ((st3fx.DST(), 0.0), (st3fx.STR(), 0.3)):
        model, _ = st3fx.convert(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(2, 3, 8, 8), method
        )
        values = settings_of(weight_decay=0.3, norm_weight_decay=0.1, bias_weight_decay=0.2)
        groups = parameter_groups(model, values)
        names = {id(p): name for name, p in model.named_parameters()}
        assert [(sorted(names[id(p)] for p in g["params"]), g["weight_decay"]) for g in groups] == [
            (["0.weight"], 0.3),
            (["1.bias", "1.weight"], 0.1),
            (["0.bias"], 0.2),
            (["0.st3fx_weight_threshold"], decay),
        ]
        assert make_optimizer(model, values).param_groups[0]["nesterov"] is False


def settings_of(**values: Any) -> Any:
    from st3fx.training.settings import Settings

    return Settings(**values)


def test_learning_rates() -> None:
    def rates(steps: list[int], **values: Any) -> list[float]:
        return [learning_rate(settings_of(lr=1.0, **values), step, 10) for step in steps]

    cosine = rates([0, 9, 10, 55, 100, 109], epochs=11, warmup_epochs=1.0, min_lr=0.2)
    assert cosine == pytest.approx([0.1, 1.0, 1.0, 0.6 + 0.4 * 0.0, 0.2098, 0.2002], abs=0.07)
    assert rates([0, 50, 100], epochs=10) == pytest.approx([1.0, 0.5, 0.0])
    assert rates([0, 9, 10, 50], epochs=9, warmup_epochs=1.0)[:3] == pytest.approx([0.1, 1.0, 1.0])
    steps = rates([39, 40, 59, 60, 99], sched="multistep", milestones=(4, 6), lr_gamma=0.5)
    assert steps == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert rates([0, 99], sched="constant") == [1.0, 1.0]
    # Milestones count from the beginning, the warm-up included, as those of the reference do.
    assert rates([4, 5, 40], sched="multistep", milestones=(4,), warmup_epochs=0.5) == [1, 1, 0.1]


def test_a_stream_is_apart_from_the_global_generators() -> None:
    def draw() -> list[float]:
        import random

        import numpy as np

        return [torch.rand(()).item(), random.random(), float(np.random.rand())]

    seed_everything(3)
    expected = draw() + draw()
    seed_everything(3)
    stream = Stream(1, 2)
    got = draw()
    with stream.active():
        first = draw()
    got += draw()
    with stream.active():
        second = draw()
    assert got == expected
    assert first != second
    again = Stream(1, 2)
    with again.active():
        assert draw() + draw() == first + second
    with Stream(1, 3).active():
        assert draw() != first
    saved = rng_state()
    values = draw()
    set_rng_state(saved)
    assert draw() == values


@pytest.mark.parametrize("name", ["fashion-mnist-mini", "loaders.py"])
def test_batches_begin_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "loaders.py", LOADERS)
    one = settings(tmp_path, batch_size=900)
    accelerator = make_accelerator(one, folder_of(one))
    try:
        batches = Batches(make_data(DataSettings(name, batch_size=900)), accelerator, 0)
        epochs = {epoch: list(batches.epoch(epoch)) for epoch in (0, 1)}
        for epoch, whole in epochs.items():
            for skip in range(batches.count + 1):
                rest = list(batches.epoch(epoch, skip))
                assert [number for number, _ in rest] == list(range(skip, batches.count))
                require_equal([b for _, b in rest], [b for _, b in whole[skip:]])
        assert not torch.equal(epochs[0][0][1][0], epochs[1][0][1][0])
        sample = list(batches.sample(1, 2))
        require_equal(sample, [batch for _, batch in epochs[1][:2]])
    finally:
        release()


def test_a_loader_without_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        "loaders.py",
        """
        import torch
        from torch.utils.data import DataLoader, IterableDataset
        class Endless(IterableDataset):
            def __iter__(self):
                while True:
                    yield torch.randn(1, 28, 28), 0
        def make_loaders(batch_size):
            return DataLoader(Endless(), batch_size), DataLoader(Endless(), batch_size)
    """,
    )
    with pytest.raises(
        TrainError, match=r"loaders.py: the training loader has no length, on which"
    ):
        train_spec(settings(tmp_path, data="loaders.py"))


def test_data_that_a_bundle_does_not_take(tmp_path: Path) -> None:
    net, bundle = write(tmp_path, "net.py", NET), tmp_path / "b"
    given = ["convert", str(net), "--input", "2x1x28x28", "-o", str(bundle)]
    made = CliRunner().invoke(main, given)
    assert made.exit_code == 0, made.output
    with pytest.raises(
        TrainError,
        match=r"Net does not take what fashion-mnist-mini gives: RuntimeError: .*channels",
    ):
        train_spec(settings(tmp_path, spec=str(bundle), channels=3))


def test_more_classes_than_outputs(tmp_path: Path) -> None:
    write(tmp_path, "net.py", NET.replace("7, 10)", "7, 7)"))
    with pytest.raises(
        TrainError, match="Net has 7 outputs, and fashion-mnist-mini has 10 classes"
    ):
        train_spec(settings(tmp_path))
    write(tmp_path, "net2.py", NET.replace("return self", "return 1, self"))
    with pytest.raises(TrainError, match=r"Net gives a int: training needs logits"):
        train_spec(settings(tmp_path, spec=str(tmp_path / "net2.py")))


@pytest.mark.slow
def test_a_bundle_is_trained(tmp_path: Path) -> None:
    """From the bundle of a run: its schedule begins anew, with another sparsity if asked for."""
    one = settings(tmp_path, epochs=1)
    train_spec(one)
    report = Recorder()
    two = settings(tmp_path, spec=str(folder_of(one).bundle), sparsity=0.5,
                   output_dir=str(tmp_path / "two"))  # fmt: skip
    result = train_spec(two, report=report)
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)
    assert result.name == "net"
    assert any("was trained for 5 steps: its schedule begins anew" in n for n in report.notes)
    assert float(report.rows[0].wanted or 0) < 0.5
    bundle = st3fx.load_bundle(folder_of(two).bundle)
    assert st3fx.Sparsifier(bundle).target == 0.5
    assert st3fx.Sparsifier(bundle).steps == 15
    assert st3fx.Sparsifier(bundle).sparsity == result.sparsity
    with pytest.raises(TrainError, match="is a bundle, which has its own include: leave it out"):
        train_spec(dataclasses.replace(two, include=("head*",)), force=True)
    scores = evaluate_spec(dataclasses.replace(two, spec=str(folder_of(two).bundle),
                                               bn_recalibrate=0)).scores  # fmt: skip
    assert scores == result.scores


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_a_training_may_start_from_zeros(tmp_path: Path, keep: bool) -> None:
    start = settings(tmp_path, weights=str(tmp_path / "w.pt"), epochs=1, sparsity=0.3,
                     keep_zeros=keep)  # fmt: skip
    weights = load_spec(start.spec).model.state_dict()
    zero = weights["head.weight"].abs() < weights["head.weight"].abs().quantile(0.2)
    weights["head.weight"][zero] = 0
    torch.save(weights, tmp_path / "w.pt")
    train_spec(start)
    bundle = st3fx.load_bundle(folder_of(start).bundle)
    stay = st3fx.fold(bundle).get_parameter("head.weight")[zero] == 0
    assert bool(stay.all()) is keep
    with pytest.raises(TrainError, match="is a bundle, which has its own keep_zeros: leave it out"):
        train_spec(settings(tmp_path, spec=str(folder_of(start).bundle), output_dir="no",
                            keep_zeros=False))  # fmt: skip


@pytest.mark.slow
def test_compiled_it_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_in_place(self: nn.Module, **options: Any) -> None:
        inner: Any = self._call_impl
        compiled.append(self)

        def call(*args: Tensor) -> Any:
            return inner(*args)

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_in_place)
    one = settings(tmp_path, torchcompile=True, epochs=1)
    train_spec(one)
    assert [type(model).__name__ for model in compiled] == ["Net"]
    assert set(load_spec(one.spec).model.state_dict()) < set(state(one)["model"])
    plain = settings(tmp_path, epochs=1, output_dir=str(tmp_path / "plain"))
    train_spec(plain)
    assert set(state(plain)["model"]) == set(state(one)["model"])
    assert rows(plain) == rows(one)


@pytest.mark.slow
def test_schedules_count_optimizer_steps(tmp_path: Path) -> None:
    one = settings(tmp_path, batch_size=400, grad_accum_steps=2, log_interval=1, ramp=(0.2, 0.8))
    report = Recorder()
    train_spec(one, report=report)
    schedule = CubicSchedule(0.2, 0.8)
    assert [row.wanted for row in report.rows] == [
        schedule.sparsity(step, 15, 0.9) for step in range(1, 16)
    ]
    for row in report.rows:
        assert row.sparsity == pytest.approx(row.wanted, abs=2e-3)
    assert report.rows[-1].threshold is not None
    assert Log(folder_of(one).log).rows()[0]["threshold"] is None
    assert resumed(one).sparsity == report.scores[-1].sparsity


FADING = """
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Fading(Dataset):
        "Easy for 600 samples; from then on images say the wrong thing."
        drawn = 0
        def __len__(self):
            return 120
        def __getitem__(self, index):
            Fading.drawn += 1
            label = index % 4
            shown = label if Fading.drawn <= 600 else (label + 1) % 4
            image = torch.zeros(1, 28, 28)
            image[:, 7 * shown : 7 * shown + 7] = 1
            return image, label

    def make_loaders(batch_size, seed):
        return DataLoader(Fading(), batch_size=30), DataLoader(Fading(), batch_size=30)
"""


def test_a_model_that_falls_back_to_guessing_is_said_once(tmp_path: Path) -> None:
    data = write(tmp_path, "fading.py", FADING)
    of = settings(
        tmp_path, data=str(data), epochs=8, sparsity=0.1, lr=0.05, bn_recalibrate=0, log_interval=1
    )
    report = Recorder()
    train_spec(of, report=report)
    told = [note for note in report.notes if "a model that guesses" in note]
    assert len(told) == 1, report.notes
    assert "--clip-grad 1" in told[0]
    losses = [row.loss for row in report.rows]
    assert min(losses) < 0.7 * math.log(10)
    assert max(losses) > 0.97 * math.log(10)


def test_a_model_that_never_learns_is_not_said_to_have_diverged(tmp_path: Path) -> None:
    report = Recorder()
    train_spec(settings(tmp_path, lr=0.0), report=report)
    assert not [note for note in report.notes if "guesses" in note]


def test_gradients_are_clipped_unless_that_is_switched_off(tmp_path: Path) -> None:
    losses = {}
    for clip in (0.01, 1e6, 0.0):
        report = Recorder()
        train_spec(
            settings(tmp_path, clip_grad=clip, epochs=1, output_dir=str(tmp_path / str(clip))),
            report=report,
        )
        losses[clip] = [row.loss for row in report.rows]
    assert losses[0.0] == losses[1e6]
    assert losses[0.0] != losses[0.01]
    assert Settings(spec="").clip_grad == 3.0
