"""Every method in a training as users write it: before, during, frozen, saved, averaged, folded."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import st3fx
from st3fx.errors import EmptyLayerWarning, StateError
from st3fx.methods import DST, GMP, STR, Feather
from st3fx.modules.state import seed_everything
from tests.nets import Mixed, Net, image, sequence
from tests.parity import require_plain, require_same, require_zeros, run

STEPS = 8
RAMP = st3fx.CubicSchedule(0.0, 0.5)
METHODS: dict[str, Any] = {
    "st3": st3fx.ST3(0.6, schedule=RAMP),
    "st3-sigma": st3fx.ST3(0.6, normalize="sigma", schedule=RAMP),
    "macs": st3fx.ST3(0.6, budget="macs", schedule=RAMP),
    "feather": Feather(0.96, schedule=RAMP),
    "gmp": GMP(0.6, schedule=RAMP),
    "lrr": st3fx.LRR(0.6, cycles=2),
    "dst": DST(0.05),
    "str": STR(-150.0),
}
LEARNED = ["dst", "str"]
SCHEDULED = [name for name in METHODS if name not in LEARNED]
MODELS: dict[str, tuple[type[nn.Module], Callable[[], Tensor]]] = {
    "one island": (Net, image),
    "several": (Mixed, sequence),
}
# The other two have the operator of ST-3, and differ in how its threshold is found.
names = pytest.mark.parametrize("name", ["st3", "feather", "gmp", *LEARNED])
learned = pytest.mark.parametrize("name", LEARNED)
scheduled = pytest.mark.parametrize("name", SCHEDULED)
models = pytest.mark.parametrize("kind", MODELS)


def converted(
    name: str, kind: str = "one island", **options: Any
) -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    make, inputs = MODELS[kind]
    settings = {"total_steps": STEPS, "verify": False, **options}
    return st3fx.convert(make(), inputs(), METHODS[name], **settings)


def start(sparsifier: st3fx.Sparsifier) -> None:
    """Bring learned thresholds to where they prune."""
    with torch.no_grad():
        for threshold in sparsifier.threshold_parameters():
            threshold.fill_(-2.2 if threshold.shape == (1,) else 0.12)


def train(
    model: nn.Module,
    sparsifier: st3fx.Sparsifier,
    x: Tensor,
    steps: int = STEPS,
    optimizer: Any = None,
) -> None:
    chosen = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    model.train()
    for _ in range(steps):
        chosen.zero_grad()
        (model(x).square().mean() + sparsifier.penalty()).backward()
        chosen.step()
        sparsifier.step()


def trained(name: str, kind: str = "one island") -> tuple[nn.Module, st3fx.Sparsifier, Tensor]:
    model, sparsifier = converted(name, kind)
    x = MODELS[kind][1]()
    start(sparsifier)
    train(model, sparsifier, x)
    assert 0.2 < sparsifier.sparsity < 0.99
    return model, sparsifier, x


def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = run(model, (x,), {}, training=False, seed=0)
    return output


@names
@models
@pytest.mark.parametrize("verify", [True, False])
def test_before_the_first_step_it_trains_as_the_original(
    name: str, kind: str, verify: bool
) -> None:
    make, inputs = MODELS[kind]
    torch.manual_seed(0)
    original = make()
    model, sparsifier = converted(name, kind, verify=verify)
    assert sparsifier.plan.verified is verify
    x = inputs()
    for seed in (0, 1):
        results = []
        for module in (original, model):
            seed_everything(seed)
            module.zero_grad(set_to_none=True)
            output = module.train()(x)
            output.square().sum().backward()
            gradients = {n: p.grad for n, p in module.named_parameters() if "st3fx" not in n}
            results.append([output.detach(), gradients])
        require_same(results[0], results[1], "output and gradients")
    require_same(evaluated(original, x), evaluated(model, x), "eval output")
    assert sparsifier.sparsity == 0.0


@pytest.mark.slow
@names
@models
def test_fold_copies_and_files_keep_the_output(name: str, kind: str) -> None:
    model, sparsifier, x = trained(name, kind)
    expected = evaluated(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    fresh, its_sparsifier = converted(name, kind)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert its_sparsifier.steps == STEPS
    for other in (*copies, fresh):
        require_same(expected, evaluated(other, x), "copy")
        driver = st3fx.Sparsifier(other)
        assert driver.thresholds == sparsifier.thresholds
        seed_everything(0)
        train(other, driver, x, 2)
        assert driver.thresholds != sparsifier.thresholds
    require_same(expected, evaluated(model, x), "the original of copies")
    folded = st3fx.fold(model)
    require_plain(folded)
    require_zeros(folded)
    require_same(expected, evaluated(folded, x), "fold")
    make = MODELS[kind][0]
    plain = make()
    plain.load_state_dict(folded.state_dict(), strict=True)
    require_same(expected, evaluated(plain, x), "folded weights in a plain model")


@names
def test_copies_go_on_training_as_the_original(name: str) -> None:
    model, sparsifier = converted(name)
    x = image()
    start(sparsifier)
    train(model, sparsifier, x, 3)
    other = copy.deepcopy(model)
    for module in (model, other):
        seed_everything(3)
        train(module, st3fx.Sparsifier(module), x, 3)
    require_same(model.state_dict(), other.state_dict(), "training of a copy")


@learned
def test_learned_thresholds_are_parameters(name: str) -> None:
    model, sparsifier = converted(name)
    own = {n for n, _ in model.named_parameters() if n.rpartition(".")[2].startswith("st3fx_")}
    assert own == {
        f"{site.name.rpartition('.')[0]}.st3fx_weight_threshold" for site in sparsifier.plan.sites
    }
    thresholds = sparsifier.threshold_parameters()
    assert len(thresholds) == len(own) == 5
    assert all(t.requires_grad and t.dtype == torch.float32 for t in thresholds)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given >= {id(t) for t in thresholds}


@learned
def test_a_tied_weight_has_one_threshold(name: str) -> None:
    model, _, _ = trained(name)
    one = model.get_parameter("fc.st3fx_weight_threshold")
    assert model.get_parameter("again.st3fx_weight_threshold") is one
    state = model.state_dict()
    assert torch.equal(state["fc.st3fx_weight_threshold"], state["again.st3fx_weight_threshold"])
    twin = copy.deepcopy(model)
    assert twin.get_parameter("again.st3fx_weight_threshold") is twin.get_parameter(
        "fc.st3fx_weight_threshold"
    )


def test_dst_is_penalised_for_low_thresholds() -> None:
    model, sparsifier = converted("dst")
    thresholds = sparsifier.threshold_parameters()
    channels = sum(t.numel() for t in thresholds)
    assert sparsifier.penalty().item() == pytest.approx(0.05 * channels)  # inactive: exp(0)
    sparsifier.step()
    assert all((t == 0).all() for t in thresholds)
    with torch.no_grad():
        thresholds[1].fill_(0.3)
    penalty = sparsifier.penalty()
    expected = 0.05 * sum(float(torch.exp(-t.detach()).sum()) for t in thresholds)
    assert penalty.item() == pytest.approx(expected)
    penalty.backward()
    for threshold in thresholds:
        assert threshold.grad is not None
        torch.testing.assert_close(threshold.grad, -0.05 * torch.exp(-threshold.detach()))
    assert model.get_parameter("stem.weight").grad is None


def test_dst_keeps_thresholds_at_zero_or_above() -> None:
    _, sparsifier = converted("dst")
    sparsifier.step()
    with torch.no_grad():
        for index, threshold in enumerate(sparsifier.threshold_parameters()):
            threshold.flatten()[::2] = -0.5 if index % 2 else 0.01
    sparsifier.step()
    assert all((t >= 0).all() for t in sparsifier.threshold_parameters())
    assert any((t > 0).any() for t in sparsifier.threshold_parameters())


@pytest.mark.parametrize(("left", "reset"), [(0, True), (3, True), (4, False), (40, False)])
def test_dst_sets_a_layer_back_that_keeps_one_percent(left: int, reset: bool) -> None:
    model, sparsifier = st3fx.convert(
        nn.Sequential(nn.Linear(20, 15), nn.Linear(15, 3)), torch.randn(2, 20), DST(), verify=False
    )
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight.fill_(0.1).view(-1)[:left] = -2.0
        for threshold in sparsifier.threshold_parameters():
            threshold.fill_(0.5 if threshold.shape == (15, 1) else 0.001)
    sparsifier.step()
    assert sparsifier.thresholds["0.weight"] == (0.0 if reset else 0.5)
    assert sparsifier.thresholds["1.weight"] == pytest.approx(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("name", ["dst", "st3"])
def test_recurrent_layers_train(kind: Any, name: str) -> None:
    method = DST(0.05) if name == "dst" else METHODS[name]
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    model, sparsifier = st3fx.convert(
        kind(8, 6, num_layers=2, batch_first=True), x, method, total_steps=40, verify=False
    )
    sites = {site.name for site in sparsifier.plan.sites}
    assert sites == {f"weight_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)}
    sparsities, losses = [], []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x)[0] - 0.2).square().mean()
        (loss + sparsifier.penalty()).backward()
        optimizer.step()
        sparsifier.step()
        sparsities.append(sparsifier.sparsity)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert sparsities[0] < 0.1
    assert sparsities[-1] > 0.3
    assert all(value > 0 for value in sparsifier.thresholds.values())
    if name == "dst":
        for threshold in sparsifier.threshold_parameters():
            assert threshold.shape[0] in (24, 18)  # one for each gate's neuron
            assert len(threshold.unique()) > 2
    expected = evaluated_sequence(model, x)
    require_same(expected, evaluated_sequence(st3fx.fold(model), x), "fold")


@torch.no_grad()
def evaluated_sequence(model: nn.Module, x: Tensor) -> Any:
    return model.eval()(x)


@pytest.mark.slow
def test_weight_decay_raises_the_threshold_of_str() -> None:
    model, sparsifier = converted("str")
    x = image()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
    levels = []
    for _ in range(100):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        levels.append(sparsifier.thresholds["block.conv1.weight"])
    assert levels[0] == 0.0
    assert levels == sorted(levels)
    assert levels[-1] > 0.1
    assert sparsifier.sparsity > 0.3


@pytest.mark.slow
@names
def test_compiled_in_one_graph_it_trains_the_same(name: str) -> None:
    torch._dynamo.reset()
    model, sparsifier = st3fx.convert(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        image(), METHODS[name], total_steps=4, verify=False,
    )  # fmt: skip
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    start(sparsifier)
    sparsifier.step()
    for _ in range(2):
        results = []
        for call in (model, compiled):
            model.zero_grad(set_to_none=True)
            output = call(image())
            (output.square().sum() + sparsifier.penalty()).backward()
            results.append([output.detach(), *(p.grad for p in model.parameters())])
        require_same(results[0], results[1], "output and gradients")
        sparsifier.step()


@names
def test_autocast_leaves_weights_and_gradients_in_full_precision(name: str) -> None:
    model, sparsifier, x = trained(name)
    plain = Net()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "st3fx" not in k})
    plain.load_state_dict(sparsifier.effective_weights(), strict=False)
    outputs = []
    for module in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(run(module, (x,), {}, training=True, seed=0))
        outputs[-1].float().square().sum().backward()
    require_same(outputs[0].detach(), outputs[1].detach(), "output")
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def is_frozen(sparsifier: st3fx.Sparsifier) -> bool:
    """The property, asked anew: a type checker takes it for constant."""
    return sparsifier.frozen


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
}


@names
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_frozen_zeros_stay(name: str, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, sparsifier = converted(name)
    x = image()
    start(sparsifier)
    optimizer = make(model.parameters())
    train(model, sparsifier, x, 4, optimizer)
    sparsifier.freeze()
    assert sparsifier.frozen
    zeros = {n: weight == 0 for n, weight in sparsifier.effective_weights().items()}
    thresholds = sparsifier.thresholds
    assert sum(int(z.sum()) for z in zeros.values()) > 50
    for _ in range(4):
        train(model, sparsifier, x, 1, optimizer)
        for site, weight in sparsifier.effective_weights().items():
            pruned = weight[zeros[site]]
            assert not pruned.any(), site
            assert not torch.signbit(pruned).any(), site
            gradient = model.get_parameter(site).grad
            assert gradient is not None
            assert not gradient[zeros[site]].any(), site
    assert any(
        model.get_parameter(site)[zero].detach().abs().max() > 0 for site, zero in zeros.items()
    )
    if name in SCHEDULED:
        assert sparsifier.thresholds == thresholds
        with pytest.raises(StateError, match="the masks are frozen"):
            sparsifier.set_sparsity(0.1)
    folded = st3fx.fold(model)
    require_same(evaluated(model, x), evaluated(folded, x), "fold")
    for site, zero in zeros.items():
        assert not folded.get_parameter(site)[zero].any()


@pytest.mark.slow
@names
def test_checkpoints_go_between_frozen_and_free_models(name: str) -> None:
    model, sparsifier, x = trained(name)
    free = copy.deepcopy(model.state_dict())
    sparsifier.freeze()
    frozen = copy.deepcopy(model.state_dict())
    assert frozen.keys() == free.keys()  # and the same shapes: distributed checkpoints ask for it
    assert [value.shape for value in frozen.values()] == [value.shape for value in free.values()]
    masks = {item.site.name: item.tensors("mask")[0].clone() for item in sparsifier.run.bound()}
    with torch.no_grad():
        for key, value in frozen.items():
            if key.endswith("weight"):
                value.add_(0.5)  # momentum: latent weights above the threshold
    for other in (converted(name)[0], copy.deepcopy(model), copy.deepcopy(converted(name)[0])):
        driver = st3fx.Sparsifier(other)
        other.load_state_dict(frozen, strict=True)
        assert is_frozen(driver)
        for site, weight in driver.effective_weights().items():
            assert not weight[~masks[site]].any()
        require_same(evaluated(other, x), evaluated(st3fx.fold(other), x), "fold of a frozen one")
        other.load_state_dict(free, strict=True)
        assert not is_frozen(driver)
        assert set(other.state_dict()) == set(free)
        train(other, driver, x, 1)
    assert sparsifier.frozen  # the original of the copies
    outer = nn.ModuleDict({"inner": converted(name)[0]})  # under a prefix
    outer.load_state_dict({f"inner.{key}": value for key, value in frozen.items()}, strict=True)
    assert st3fx.Sparsifier(outer["inner"]).frozen


@names
def test_the_users_own_weights_leave_masks_and_thresholds_alone(name: str) -> None:
    model, sparsifier, _ = trained(name)
    sparsifier.freeze()
    thresholds = sparsifier.thresholds
    model.load_state_dict(Net().state_dict(), strict=False)
    assert sparsifier.frozen
    assert sparsifier.thresholds == thresholds


@pytest.mark.slow
@names
@pytest.mark.parametrize("frozen", [False, True])
def test_the_sparsifiers_state_goes_into_another(name: str, frozen: bool) -> None:
    _, sparsifier, _ = trained(name)
    if frozen:
        sparsifier.freeze()
    file = io.BytesIO()
    torch.save(sparsifier.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    assert set(state) == {"step", "sparsity", "held", "frozen", "floor", "thresholds", "masks"}
    for loads in (state, sparsifier.state_dict()):
        other, driver = converted(name)
        driver.load_state_dict(loads)
        require_same(driver.state_dict(), sparsifier.state_dict(), "state")
        assert driver.frozen is frozen
        masks = [mask for site in driver.run.bound() for mask in site.tensors("mask")]
        assert [mask.numel() > 0 for mask in masks] == [frozen] * 6
        assert other.state_dict().keys() == converted(name)[0].state_dict().keys()
        driver.load_state_dict(converted(name)[1].state_dict())
        assert not driver.frozen
        assert driver.steps == 0
    assert sparsifier.steps == STEPS


@pytest.mark.slow
def test_states_share_no_memory() -> None:
    model, sparsifier, _ = trained("st3")
    sparsifier.freeze()
    state = sparsifier.state_dict()
    other, driver = converted("st3")
    driver.load_state_dict(state)
    for mask in state["masks"].values():
        mask.zero_()
    for value in state["thresholds"].values():
        value.fill_(9.0)
    both: list[Any] = [model, other]
    for module in both:
        assert module.stem.st3fx_weight_mask.any()
        assert module.stem.st3fx_weight_threshold.item() < 9


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCHEDULED if name != "lrr"])  # once a cycle
def test_thresholds_are_set_every_few_steps(name: str) -> None:
    model, sparsifier = converted(name, update_every=3)
    x, seen = image(), []
    for _ in range(STEPS):
        train(model, sparsifier, x, 1)
        seen.append(tuple(sparsifier.thresholds.values()))
    assert sparsifier.steps == STEPS
    assert seen[0] == seen[1] != seen[2] == seen[3] == seen[4] != seen[5] == seen[6] != seen[7]


@names
def test_steps_that_a_gradient_scaler_skips_do_not_count(name: str) -> None:
    model, sparsifier = converted(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    x, made = image(), 0
    for index in range(6):
        optimizer.zero_grad()
        loss = model(x).square().mean() + sparsifier.penalty()
        scaler.scale(loss * (torch.inf if index % 3 == 1 else 1.0)).backward()
        before = scaler.get_scale()
        weight = model.get_parameter("stem.weight").detach().clone()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            made += 1
            sparsifier.step()
        else:
            assert torch.equal(model.get_parameter("stem.weight"), weight)
    assert made == sparsifier.steps == 4


@names
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_weights_get_thresholds_of_their_own(name: str, use_buffers: bool) -> None:
    model, sparsifier = converted(name)
    x = image()
    start(sparsifier)
    ema = get_ema_multi_avg_fn(0.5)
    averaged = AveragedModel(model, multi_avg_fn=ema, use_buffers=use_buffers)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    latent = model.get_parameter("stem.weight").detach().clone()
    for index in range(STEPS):
        train(model, sparsifier, x, 1, optimizer)
        averaged.update_parameters(model)
        now = model.get_parameter("stem.weight").detach()
        latent = now.clone() if index == 0 else latent * 0.5 + now * 0.5
    driver = st3fx.Sparsifier(averaged.module)
    assert driver.sparsity >= 0  # whatever was asked before
    torch.testing.assert_close(averaged.module.get_parameter("stem.weight"), latent)
    if name in SCHEDULED and name != "macs":
        target = METHODS[name].sparsity
        assert driver.sparsity == pytest.approx(target, abs=2 / driver.plan.numel)
        assert driver.thresholds != sparsifier.thresholds
    expected = evaluated(averaged.module, x)
    require_same(expected, evaluated(st3fx.fold(averaged.module), x), "fold of the average")


@learned
def test_no_sparsity_can_be_set_where_it_is_learned(name: str) -> None:
    _, sparsifier = converted(name)
    assert sparsifier.target is None
    with pytest.raises(StateError, match=f"{name} learns its thresholds"):
        sparsifier.set_sparsity(0.5)


@pytest.mark.slow
@scheduled
def test_accumulated_gradients_count_once(name: str) -> None:
    model, sparsifier = converted(name)
    model.eval()  # without batch statistics, two halves are the whole
    alone = copy.deepcopy(model)
    x = image(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    other = torch.optim.SGD(alone.parameters(), 0.05)
    for _ in range(STEPS):
        for part in x.chunk(2):
            (model(part).square().mean() / 2).backward()
        alone(x).square().mean().backward()
        for module, chosen in ((model, optimizer), (alone, other)):
            chosen.step()
            chosen.zero_grad()
            st3fx.Sparsifier(module).step()
    assert sparsifier.steps == STEPS
    expected = st3fx.Sparsifier(alone).thresholds
    assert sparsifier.thresholds == pytest.approx(expected, rel=1e-3)


def test_an_empty_layer_is_named_once() -> None:
    model, sparsifier = converted("st3")
    with torch.no_grad():
        model.get_parameter("block.conv2.weight").mul_(1e-4)
    with pytest.warns(EmptyLayerWarning, match="block.conv2.weight has lost all of its weights"):
        sparsifier.set_sparsity(0.5)
    assert sparsifier.empty_layers() == ("block.conv2.weight",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.set_sparsity(0.6)


def test_empty_layers_are_named_together() -> None:
    model, sparsifier = converted("st3")
    sites = sorted(sparsifier.plan.sites, key=lambda site: site.numel)
    names = [site.name for site in sites[:3]]
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).mul_(1e-6)
    with pytest.warns(EmptyLayerWarning) as caught:
        sparsifier.set_sparsity(0.9)
    (only,) = caught
    first, *others = sparsifier.empty_layers()
    assert {first, *others} == set(names)
    assert str(only.message).startswith(
        f"{first} has lost all of its weights at sparsity 0.9, and so have {', '.join(others)}: "
    )
    assert "exclude them" in str(only.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.set_sparsity(0.901)


def test_with_a_budget_of_multiplications_their_share_is_left() -> None:
    _, sparsifier = converted("macs")
    sites = sparsifier.plan.sites
    total = sum(site.cost * site.numel for site in sites)
    largest = max(site.cost for site in sites)
    assert len({site.cost for site in sites}) > 1
    for sparsity in (0.3, 0.6, 0.9):
        sparsifier.set_sparsity(sparsity)
        weights = sparsifier.effective_weights()
        spent = sum(site.cost * int((weights[site.name] == 0).sum()) for site in sites)
        assert sparsity <= spent / total <= sparsity + largest / total
