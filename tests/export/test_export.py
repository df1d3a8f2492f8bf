"""Exports from end to end, each with all of its checks."""

from __future__ import annotations

import copy
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import ExportError, InputError
from st3fx.export.export_result import ExportResult
from st3fx.export.zeros import initializers
from tests.export import nets
from tests.nets import Mixed, Net, image, sequence

X = torch.arange(8.0).reshape(2, 4) / 8


def _onnx(path: Path, *inputs: Tensor) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {port.name: x.numpy() for port, x in zip(session.get_inputs(), inputs, strict=True)}
    result: list[Any] = session.run(None, feeds)
    return result


def _pruned(model: nn.Module, example: Any, sparsity: float = 0.9) -> nn.Module:
    converted, sparsifier = st3fx.convert(model, example, verify=False)
    sparsifier.set_sparsity(sparsity)
    return converted


def _statistics(model: nn.Module) -> nn.Module:
    """Batch norms with values that show whether they are folded rightly."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    return model


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportResult]:
    """A converted net, pruned, and its export."""
    torch.manual_seed(0)
    model = _pruned(_statistics(Net()), image())
    path = tmp_path_factory.mktemp("net") / "deep" / "net.onnx"
    return model, st3fx.export_onnx(model, image(), path)


@pytest.mark.slow
def test_any_batch_size_computes_what_the_folded_model_does(
    net: tuple[nn.Module, ExportResult],
) -> None:
    model, result = net
    folded = st3fx.fold(model).eval()
    for batch in (1, 3, 7):
        wanted = folded(image(batch)).detach().numpy()
        (given,) = _onnx(result.path, image(batch))
        np.testing.assert_allclose(given, wanted, atol=1e-6 * np.abs(wanted).max(), rtol=0)
    assert [(row.inputs, row.batch) for row in result.parity] == [
        ("given", 3), ("random", 1), ("random", 3),
    ]  # fmt: skip
    assert all(0 <= row.relative <= 1e-5 for row in result.parity)
    assert max(row.absolute for row in result.parity) > 0
    assert result.tolerance == 1e-4


def test_every_zero_survives_under_its_name(net: tuple[nn.Module, ExportResult]) -> None:
    model, result = net
    stored = initializers(onnx.load(result.path))
    weights = {n: p for n, p in st3fx.fold(model).named_parameters() if p.dim() > 1}
    assert weights.keys() <= stored.keys()
    for name, weight in weights.items():
        assert np.array_equal(stored[name] == 0, weight.detach().numpy() == 0), name
        assert not np.signbit(stored[name][stored[name] == 0]).any()
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert (result.zeros.zeros, result.zeros.elements) == (
        zeros,
        sum(weight.numel() for weight in weights.values()),
    )
    assert result.zeros.sparsity == pytest.approx(0.9, abs=0.01)


def test_the_graph_is_clean(net: tuple[nn.Module, ExportResult]) -> None:
    _, result = net
    proto = onnx.load(result.path)
    kinds = [node.op_type for node in proto.graph.node]
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds
    assert result.batch_norms == 1
    assert result.batch_norms_kept == {}
    assert [(p.name, p.dtype, p.shape) for p in (*result.inputs, *result.outputs)] == [
        ("x", "FLOAT", ("batch", 3, 8, 8)),
        ("output", "FLOAT", ("batch", 5)),
    ]
    assert result.opset == proto.opset_import[0].version
    assert result.dynamic_batch
    assert result.files == (result.path,)
    assert list(result.path.parent.iterdir()) == [result.path]
    assert b"/tests/" not in result.path.read_bytes()  # no paths of this machine
    before, after = result.sizes
    assert after.raw == result.path.stat().st_size
    assert before.raw > 0
    assert 0 < after.compressed < after.raw


@pytest.mark.slow
def test_the_given_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nets.Restless().train()
    state, x = copy.deepcopy(model.state_dict()), X.clone()
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    result = st3fx.export_onnx(model, x, tmp_path / "m.onnx", batch_sizes=(2,))
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert torch.equal(x, X)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    # The file computes what a first call does, whatever the number of the call.
    wanted = model.eval()(X.clone()).detach().numpy()
    np.testing.assert_allclose(_onnx(result.path, X)[0], wanted, rtol=1e-5)


@pytest.mark.slow
def test_several_inputs_and_outputs_of_many_kinds(tmp_path: Path) -> None:
    model = nets.Several().eval()
    with torch.no_grad():
        model.out.weight[:, ::2] = 0
    ids, shift = torch.tensor([[1, 9, 3], [0, 2, 2]]), torch.randn(2, 4)
    example = {"ids": ids, "extra": {"shift": shift, "unused": None}, "scale": 2.5}
    result = st3fx.export_onnx(model, example, tmp_path / "m.onnx")
    assert [(p.name, p.dtype, p.shape) for p in result.inputs] == [
        ("ids", "INT64", ("batch", 3)),
        ("extra_shift", "FLOAT", ("batch", 4)),
    ]
    assert [(p.name, p.dtype) for p in result.outputs] == [
        ("logits", "FLOAT"), ("best", "INT64"), ("pair_left", "FLOAT"), ("pair_right_0", "INT64"),
        ("pair_right_1", "FLOAT"), ("scores_scores", "FLOAT"), ("ids_out", "INT64"),
    ]  # fmt: skip
    assert result.baked == ("scale=2.5",)
    # The tied weight is there once, the one for training not at all.
    assert (result.zeros.elements, result.zeros.zeros) == (40, 20)
    more = torch.tensor([[5, 5, 5]] * 4), torch.randn(4, 4)
    given = _onnx(result.path, *more)
    wanted = model(more[0], {"shift": more[1]}, scale=2.5)
    np.testing.assert_allclose(given[0], wanted["logits"].detach().numpy(), atol=1e-5)
    assert np.array_equal(given[1], wanted["best"].numpy())


@pytest.mark.slow
def test_batch_norm_stays_where_it_would_empty_a_weight(tmp_path: Path) -> None:
    model = _pruned(nets.ZeroGamma(), image(2), sparsity=0.5)
    result = st3fx.export_onnx(model, image(2), tmp_path / "m.onnx")
    assert result.batch_norms == 1
    assert result.batch_norms_kept == {"norm2": "conv2.weight would have other zeros"}
    assert result.zeros.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the outputs are the same for every input")
def test_sparse_initializers_are_smaller_and_the_same(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    x = torch.randn(2, 64)
    model = st3fx.fold(_pruned(layers, x, sparsity=0.95))
    dense = st3fx.export_onnx(model, x, tmp_path / "dense.onnx")
    sparse = st3fx.export_onnx(model, x, tmp_path / "sparse.onnx", sparse_initializers=True)
    assert (dense.sparse_initializers, sparse.sparse_initializers) == (0, 2)
    assert sparse.path.stat().st_size < 0.25 * dense.path.stat().st_size
    assert sparse.zeros == dense.zeros
    assert np.array_equal(_onnx(sparse.path, x)[0], _onnx(dense.path, x)[0])
    left, right = (initializers(onnx.load(result.path)) for result in (dense, sparse))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 21])
def test_the_opset_is_what_was_asked_for(tmp_path: Path, opset: int) -> None:
    result = st3fx.export_onnx(nets.Linear(), X, tmp_path / "m.onnx", opset=opset)
    assert result.opset == onnx.load(result.path).opset_import[0].version == opset


@pytest.mark.slow
def test_a_fixed_batch_is_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(
        ExportError, match=r"one batch size only, that of the example: .* \(--fixed-b"
    ):
        st3fx.export_onnx(nets.TwoSamples(), X, path)
    assert list(tmp_path.iterdir()) == []
    result = st3fx.export_onnx(nets.TwoSamples(), X, path, fixed_batch=True)
    assert result.inputs[0].shape == (2, 4)
    assert not result.dynamic_batch
    assert [(row.inputs, row.batch) for row in result.parity] == [("given", 2), ("random", 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nets.OneSample(), "OneSample works for one batch size only, that of the example"),
        (
            nets.Alone(),
            r"ValueError: one sample, please, at \S*nets\.py:\d+: raise .*; if it is made",
        ),
    ],
)
def test_a_model_of_one_sample(tmp_path: Path, model: nn.Module, message: str) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match=message) as caught:
        st3fx.export_onnx(model, X[:1], path)
    assert "--fixed-batch" in str(caught.value)
    assert st3fx.export_onnx(model, X[:1], path, fixed_batch=True).parity[0].batch == 1


@pytest.mark.slow
@pytest.mark.parametrize("reduced", [False, True])
def test_what_a_forward_keeps_is_of_no_exporter(tmp_path: Path, reduced: bool) -> None:
    model = nets.Anchors().eval()
    folded = st3fx.fold(_pruned(model, X))
    path = tmp_path / "m.onnx"
    result = st3fx.export_onnx(folded, X, path, eliminate_dead_channels=reduced)
    assert [row.batch for row in result.parity] == [2, 1, 3]
    assert folded(X).numpy(force=True).shape == (2, 4)


@pytest.mark.slow
def test_equal_layers_become_one(tmp_path: Path) -> None:
    model = nets.Twins()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.25)
    folded = st3fx.fold(_pruned(model, image()))
    result = st3fx.export_onnx(folded, image(), tmp_path / "m.onnx")
    assert result.zeros.tensors == 2
    assert result.zeros.sparsity == pytest.approx(0.9, abs=0.01)


@pytest.mark.slow
def test_one_sample_is_example_enough(tmp_path: Path) -> None:
    result = st3fx.export_onnx(nets.Linear(), X[:1], tmp_path / "m.onnx", batch_sizes=(4,))
    assert result.inputs[0].shape == ("batch", 4)
    assert [row.batch for row in result.parity] == [1, 4]


@pytest.mark.slow
def test_samples_are_repeated_where_random_values_are_refused(tmp_path: Path) -> None:
    result = st3fx.export_onnx(nets.Table(), X, tmp_path / "m.onnx")
    assert [(row.inputs, row.batch) for row in result.parity] == [
        ("given", 2), ("repeated", 1), ("repeated", 3),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nets.Histogram(),
         (r"Histogram cannot be exported: ONNX has no form of aten\.histc, at \S*nets\.py:\d+: "
         r"return torch\.histc\(y\)$")),
        (nets.Branch(),
         (r"Branch cannot be exported: its forward branches on the values of a tensor, at "
         r"\S*nets\.py:\d+: if x\.sum\(\) > 0:$")),
        (nets.BySize(),
         (r"differ in output at batch 3, random inputs: .* is allowed \(--tolerance\); a forward "
         "that branches on sizes or values is exported for the example's branch")),
        (nets.Noisy(),
         ("differ in output at batch 2, given inputs: .* random numbers in eval mode: leave this "
         "check out by --no-verify")),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model: nn.Module, message: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there before")
    with pytest.raises(ExportError, match=message):
        st3fx.export_onnx(model, X, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"what was there before"
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_converted_model_is_folded_before_it_is_captured(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Mixed cannot be exported: .* tests/nets\.py:\d+: if y"):
        st3fx.export_onnx(_pruned(Mixed(), sequence()), sequence(), tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    model, path = nn.Linear(1000, 100), tmp_path / "m.onnx"
    path.write_bytes(b"what was there before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=rf"cannot write {re.escape(str(path))}: File too la"):
            st3fx.export_onnx(model, torch.randn(2, 1000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"what was there before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 6}, r"opset 6 cannot be had: st3fx writes 13 to \d+, the last that"),
        ({"opset": 99}, "opset 99 cannot be had"),
        ({"batch_sizes": ()}, "give numbers from 1 on"),
        ({"batch_sizes": (1, 0)}, r"batch sizes \(1, 0\): give numbers from 1 on"),
        ({"tolerance": 0.0}, "tolerance 0.0: give a number above 0"),
        ({"tolerance": float("nan")}, "tolerance nan: give a number above 0"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        st3fx.export_onnx(nets.Linear(), X, tmp_path / "m.onnx", **options)


def test_wrong_examples_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(InputError, match="Linear refuses the example inputs in eval mode: Runtime"):
        st3fx.export_onnx(nets.Linear(), torch.ones(2, 3), path)
    with pytest.raises(ExportError, match="the example holds no tensor"):
        st3fx.export_onnx(nets.Linear(), (3,), path)
    with pytest.raises(ExportError, match=r"model is a str: give an nn\.Module"):
        st3fx.export_onnx("model", X, path)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_comparison_that_says_little_is_no_silent_success(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    assert st3fx.export_onnx(model, X, tmp_path / "dense.onnx").says_little == ""
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    said = "the outputs are the same for every input, as 2.weight lost all weights: that they agree"
    with pytest.warns(st3fx.EmptyLayerWarning, match=said):
        result = st3fx.export_onnx(model, X, tmp_path / "empty.onnx")
    assert result.says_little in result.to_dict()["says_little"] != ""
    assert all(row.constant for row in result.parity)
