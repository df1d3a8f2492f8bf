"""The operator as a citizen of PyTorch: dispatch, autograd, compile, fake tensors, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import st3fx.methods  # registers the operators
from st3fx.sparsity.formula import INACTIVE
from tests.parity import require_same

OP = torch.ops.st3fx.soft_threshold.default
NO_MASK = torch.empty(0, dtype=torch.bool)


class Tiny(nn.Module):
    """A convolution without bias, so that what autograd saves is easy to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


def sparse_tiny() -> tuple[nn.Module, st3fx.Sparsifier]:
    model, sparsifier = st3fx.convert(Tiny(), torch.randn(2, 3, 6, 6))
    sparsifier.set_sparsity(0.5)
    return model, sparsifier


# opcheck itself looks at the gradients of what it computed.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype", "dims", "groups", "rescale"),
    [
        ((8, 3, 3, 3), torch.float32, [0], 1, True),
        ((6, 4), torch.float64, [1], 1, False),
        ((6, 4, 2), torch.float32, [0, 2], 3, True),
        ((6, 4), torch.bfloat16, [], 1, True),
    ],
)
def test_opcheck(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    dims: list[int],
    groups: int,
    rescale: bool,
    requires_grad: bool,
) -> None:
    weight = torch.randn(shape).to(dtype).requires_grad_(requires_grad)
    torch.library.opcheck(OP, (weight, torch.tensor(0.5), NO_MASK, dims, groups, rescale))


def packed_by(forward: Any) -> list[tuple[int, ...]]:
    """Shapes of the tensors that a forward saves for its backward."""
    packed: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return packed


def test_nothing_is_saved_for_backward() -> None:
    weight = torch.randn(8, 3, requires_grad=True)
    assert packed_by(lambda: OP(weight, torch.tensor(0.5), NO_MASK, [0], 1, True)) == []


def test_a_sparse_model_saves_what_the_dense_one_saves() -> None:
    x = torch.randn(2, 3, 6, 6)
    dense, (sparse, _) = Tiny(), sparse_tiny()
    expected = packed_by(lambda: dense(x))
    assert expected == [(2, 3, 6, 6), (4, 3, 3, 3)]
    assert packed_by(lambda: sparse(x)) == expected


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_answers_as_the_parameter_does(
    requires_grad: bool, context: Any
) -> None:
    weight = torch.randn(4, 3, requires_grad=requires_grad)
    with context():
        effective = OP(weight, torch.tensor(0.5), NO_MASK, [0], 1, True)
    assert effective.requires_grad is requires_grad


def test_in_a_frozen_layer_nothing_requires_gradients() -> None:
    weight = torch.randn(4, 3)
    assert not OP(weight, torch.tensor(0.5), NO_MASK, [0], 1, True).requires_grad


def test_fake_tensors_pass_through() -> None:
    with FakeTensorMode():
        weight = torch.empty(6, 4, 2, dtype=torch.bfloat16, requires_grad=True)
        effective = OP(weight, torch.empty(()), torch.empty(0), [0, 2], 3, True)
    assert isinstance(effective, FakeTensor)
    assert effective.shape == (6, 4, 2)
    assert effective.dtype == torch.bfloat16
    assert effective.requires_grad


def test_a_model_runs_under_fake_tensors() -> None:
    model, _ = sparse_tiny()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.empty(7, 3, 9, 9)).shape == (7, 4, 7, 7)


def test_meta_tensors_pass_through() -> None:
    effective = OP(
        torch.empty(6, 4, device="meta"), torch.empty((), device="meta"), NO_MASK, [0], 1, True
    )
    assert effective.is_meta
    assert effective.shape == (6, 4)


def test_compiled_in_one_graph_it_gives_the_eager_result() -> None:
    model, sparsifier = sparse_tiny()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 6, 6)
    results: list[list[Any]] = []
    for run in (model, compiled):
        model.zero_grad(set_to_none=True)
        output = run(x)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad for p in model.parameters())])
    require_same(results[0], results[1], "output and gradients")
    before = results[0][0]
    sparsifier.set_sparsity(0.9)  # a compiled model follows the thresholds
    assert torch.equal(compiled(x), model(x))
    assert not torch.equal(compiled(x), before)


def test_autocast_keeps_the_latent_gradient_in_full_precision() -> None:
    model, sparsifier = sparse_tiny()
    oracle = Tiny()
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    x = torch.randn(2, 3, 6, 6)
    gradients: list[Any] = []
    for module in (model, oracle):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        gradients.append(module.get_parameter("conv.weight").grad)
    assert gradients[0] is not None
    assert gradients[0].dtype == torch.float32
    assert torch.equal(gradients[0], gradients[1])


def test_the_inactive_operator_is_in_the_graph_and_exact() -> None:
    model, _ = st3fx.convert(Tiny(), torch.randn(2, 3, 6, 6))
    threshold: Any = model.get_submodule("conv").st3fx_weight_threshold
    assert threshold.item() == INACTIVE
    weight = model.get_parameter("conv.weight")
    assert torch.equal(OP(weight, threshold, NO_MASK, [0], 1, True), weight)
