"""``st3fx inspect``: what it says of files of every kind is what they are."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

import st3fx
from st3fx.cli import main
from st3fx.commands.inspect import look
from st3fx.commands.train import train_spec
from st3fx.errors import InspectError, St3fxError
from st3fx.export.write import save_proto, write_model
from st3fx.files.bundle import read_bundle
from st3fx.files.compact import load_compact, save_compact, scan_compact
from st3fx.files.shards import Checkpoint
from st3fx.inspection.found import Layer
from st3fx.training.saving import load_checkpoint
from tests.files.test_shards import shards
from tests.models import TINY, write
from tests.passes.onnx.graphs import graph, lowered, weight
from tests.passes.onnx.quant_kernels.made_nets import MadeNet
from tests.training.runs import settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and a file of each other kind."""
    folder = tmp_path_factory.mktemp("inspect")
    train_spec(dataclasses.replace(settings(folder), sparsity=0.8, epochs=1))
    state = dict(load_file(folder / "run" / "folded.safetensors"))
    save_compact(state, folder / "w.st3w")
    torch.save({"state_dict": state, "epoch": 3}, folder / "w.pt")
    body = """
        a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
        b = Relu(a)
        c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
        d = Flatten(c)
        e = Reshape(d, s)
        y = Gemm<transB = 1>(e, v)
    """
    arrays = {"w": weight(8, 3, 3, 3), "v": weight(10, 128), "s": np.array([-1, 128])}
    dense = graph("float[N,3,8,8] x => float[N,10] y", body, **arrays)
    write_model(dense, folder / "m.onnx")
    write_model(dense, folder / "large.onnx", limit=100)
    write_model(lowered(dense)[0], folder / "m.sparse.onnx")
    save_proto(MadeNet(4).made()[0], folder / "m.int8.onnx")
    return folder


def inspect(*words: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, words)])


def shown(path: Path) -> dict[str, Any]:
    result = inspect(path, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def zeros_of(state: dict[str, torch.Tensor]) -> dict[str, int]:
    return {
        name: value.numel() - int(value.count_nonzero())
        for name, value in state.items()
        if value.dim() > 1
    }


def counted(found: dict[str, Any]) -> dict[str, int]:
    return {layer["name"]: layer["zeros"] for layer in found["layers"]}


@pytest.mark.parametrize(
    "name", ["run", "run/model.st3fx", "run/checkpoints/last.pt", "run/folded.safetensors",
             "w.st3w", "w.pt"]
)  # fmt: skip
def test_zeros_are_those_of_the_folded_model(made: Path, name: str) -> None:
    found = shown(made / name)
    expected = zeros_of(load_file(made / "run" / "folded.safetensors"))
    assert counted(found) == expected
    assert sum(expected.values()) > 1000
    elements = sum(layer["elements"] for layer in found["layers"])
    assert found["reached"] == pytest.approx(sum(expected.values()) / elements)


def test_a_bundle_says_what_its_manifest_and_plan_say(made: Path) -> None:
    bundle = read_bundle(made / "run" / "model.st3fx")
    counts = {shown(made / name)["parameters"] for name in (
        "run", "run/model.st3fx", "run/checkpoints/last.pt", "run/folded.safetensors", "w.st3w",
        "w.pt")}  # fmt: skip
    assert counts == {bundle.manifest.plan.total_parameters}
    found = shown(made / "run" / "model.st3fx")
    assert found["kind"].startswith("bundle")
    assert found["format"] == "st3fx-bundle 1"
    assert found["versions"] == bundle.manifest.versions
    assert found["sites"] == len(bundle.manifest.plan.sites) == 2
    assert found["target"] == 0.8
    assert found["step"] == found["total_steps"] == 5
    assert found["method"] == "st3, unstructured"
    holds = {item["what"]: item["holds"] for item in found["digests"]}
    assert holds == {
        "manifest.json": True, "model.safetensors": True, "graph.txt": True,
        str(made / "net.py"): True,
    }  # fmt: skip


def test_a_source_that_was_changed_or_is_gone_is_said(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run" / "model.st3fx", tmp_path / "run" / "model.st3fx")
    source = write(tmp_path, "net.py", TINY)
    assert inspect(tmp_path / "run" / "model.st3fx").exit_code == 0
    write(tmp_path, "model.py", TINY)
    st3fx_bundle = tmp_path / "model.st3fx"
    done = CliRunner().invoke(
        main, ["convert", str(tmp_path / "model.py"), "-o", str(st3fx_bundle)]
    )
    assert done.exit_code == 0, done.output
    (tmp_path / "model.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    assert "model.py was changed since the bundle was made from it" in inspect(st3fx_bundle).stdout
    (tmp_path / "model.py").unlink()
    assert "model.py is missing" in inspect(st3fx_bundle).stdout
    assert source.exists()


def test_a_checkpoint_and_a_run_say_how_far_they_are(made: Path, tmp_path: Path) -> None:
    saved = load_checkpoint(made / "run" / "checkpoints" / "last.pt")
    found = shown(made / "run" / "checkpoints" / "last.pt")
    assert (found["format"], found["step"]) == ("st3fx-checkpoint 2", saved.step)
    run = shown(made / "run")
    assert "is over" in run["progress"]
    assert run["scores"]["top-1"] > 0
    assert run["files"]["folded.safetensors"] > 1000
    for name in ("settings.toml", "metrics.jsonl"):
        shutil.copy(made / "run" / name, tmp_path)
    begun = shown(tmp_path)
    assert "has no checkpoint yet" in begun["progress"]
    assert begun["target"] == 0.8
    assert begun["steps"][0]["command"] == f"st3fx train --resume {tmp_path}"


def test_graphs_of_each_kind_have_their_zeros_operators_and_ports(made: Path) -> None:
    plain = onnx.load(made / "m.onnx")
    expected = {
        item.name: int((numpy_helper.to_array(item) == 0).sum())
        for item in plain.graph.initializer if len(item.dims) > 1
    }  # fmt: skip
    dense, sparse = shown(made / "m.onnx"), shown(made / "m.sparse.onnx")
    assert counted(dense) == counted(sparse) == expected
    assert sum(expected.values()) > 100
    assert dense["kernels"] == {}
    nodes = [node.op_type for node in onnx.load(made / "m.sparse.onnx").graph.node
             if node.domain == "st3fx"]  # fmt: skip
    assert sparse["kernels"] == {name: nodes.count(name) for name in set(nodes)} != {}
    assert dense["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}]
    assert dense["opsets"] == {"ai.onnx": plain.opset_import[0].version}
    assert dense["versions"] == {"st3fx": st3fx.__version__}


def test_weights_beside_a_graph_are_counted_and_compared(made: Path, tmp_path: Path) -> None:
    found = shown(made / "large.onnx")
    assert counted(found) == counted(shown(made / "m.onnx"))
    assert found["files"].keys() == {"large.onnx", "large.onnx.data"}
    for name in found["files"]:
        shutil.copy(made / name, tmp_path)
    data = tmp_path / "large.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with pytest.raises(InspectError, match=r"large\.onnx\.data was damaged or edited"):
        look(tmp_path / "large.onnx")


def test_integers_are_zero_where_they_equal_their_zero_point(made: Path, tmp_path: Path) -> None:
    array = np.array([[3, 3, 1], [5, 3, 5]], np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=0),
        helper.make_node("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    made_graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3])],
        [helper.make_tensor_value_info("y", 1, ["N", 2])],
        [numpy_helper.from_array(array, "w"),
         numpy_helper.from_array(np.ones(2, np.float32), "scale"),
         numpy_helper.from_array(np.array([3, 5], np.uint8), "zero")],
    )  # fmt: skip
    model = helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "q.onnx")
    found = shown(tmp_path / "q.onnx")
    assert counted(found) == {"w": 4}
    assert found["kind"] == "ONNX graph of 8-bit integers"
    assert found["digests"] == []
    assert "none: nothing in it says" in inspect(tmp_path / "q.onnx").stdout
    assert "8-bit integers" in shown(made / "m.int8.onnx")["kind"]


def test_biases_are_no_layers(tmp_path: Path) -> None:
    arrays = {
        "w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32),
        "b": np.zeros((1, 16), np.float32), "v": np.eye(2, dtype=np.float32),
        "c": np.zeros((1, 2), np.float32),
    }  # fmt: skip
    body = """
        a, h = LSTM<hidden_size = 2>(x, w, r, b)
        k = Squeeze(h)
        y = Gemm(k, v, c)
    """
    write_model(graph("float[5,N,3] x => float[N,2] y", body, **arrays), tmp_path / "m.onnx")
    assert counted(shown(tmp_path / "m.onnx")) == {"w": 0, "r": 0, "v": 2}


@pytest.mark.parametrize(
    "name", ["run", "run/model.st3fx", "run/checkpoints/last.pt", "run/folded.safetensors",
             "w.st3w", "w.pt", "m.onnx", "m.sparse.onnx", "m.int8.onnx"]
)  # fmt: skip
def test_one_screen_of_80_columns_with_commands_that_exist(
    made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    result = inspect(name)
    assert result.exit_code == 0, result.stderr
    lines = re.sub(r"\x1b\[[\d;]*m", "", result.stdout).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for step in look(name).steps:
        if not step.command.startswith("st3fx "):
            continue
        command, *rest = shlex.split(step.command)[1:]
        known = {o for p in main.commands[command].params for o in p.opts}
        assert {word for word in rest if word.startswith("-")} <= known


def test_top_and_all_choose_the_layers(made: Path) -> None:
    one = inspect(made / "w.st3w", "--top", "1").stdout
    assert "the 1 largest of 2 layers" in one
    assert "head " in one
    assert "stem " not in one
    assert "stem " in inspect(made / "w.st3w", "--all").stdout
    none = inspect(made / "w.st3w", "--top", "0").stdout
    assert "head " not in none
    assert "--top and --all" in inspect(made / "w.st3w", "--top", "1", "--all").stderr


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("run/model.st3fx/model.safetensors", "edited after it was written"),
        ("run/checkpoints/last.pt", "damaged or edited"),
        ("w.st3w", "damaged or edited"),
        ("run/folded.safetensors", "damaged or edited"),
        ("m.onnx", "damaged or edited"),
        ("m.sparse.onnx", "damaged or edited"),
    ],
)
def test_a_bit_that_flipped_is_one_line(made: Path, tmp_path: Path, name: str, wanted: str) -> None:
    top = Path(name).parts[0]
    (shutil.copytree if (made / top).is_dir() else shutil.copy)(made / top, tmp_path / top)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[-200] ^= 4
    path.write_bytes(content)
    given = path.parent if path.parent.suffix == ".st3fx" else path
    result = inspect(given)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert wanted in result.stderr
    assert result.stdout == ""


def test_what_is_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "x.pt2").write_bytes(b"PK\x03\x04")
    for name, words in {
        "missing": "no file or folder", "": "is no bundle and no run",
        "x.txt": "nothing that is known here", "x.pt2": "torch.export.load",
    }.items():  # fmt: skip
        with pytest.raises(InspectError, match=words):
            look(tmp_path / name)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(InspectError, match="holds more than tensors"):
        look(tmp_path / "model.pt")


def test_a_file_is_known_by_its_content(made: Path, tmp_path: Path) -> None:
    for name in ("w.st3w", "run/folded.safetensors", "w.pt", "m.onnx"):
        shutil.copy(made / name, tmp_path / "file")
        assert look(tmp_path / "file").kind == look(made / name).kind


def test_latent_weights_are_said_to_be_such(made: Path) -> None:
    found = shown(made / "run" / "model.st3fx" / "model.safetensors")
    assert found["reached"] is None
    assert "latent" in found["notes"][0]


def test_compact_files_are_scanned_as_they_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sparse = torch.randn(70, 33) * (torch.rand(70, 33) > 0.9)
    state = {
        "sparse": sparse, "tied": sparse, "dense": torch.randn(5, 7), "empty": torch.empty(0, 3),
        "half": torch.zeros(9, 3, dtype=torch.float16), "flags": torch.rand(20) > 0.5,
        "complex": torch.zeros(3, 2, dtype=torch.complex64), "scalar": torch.tensor(0),
    }  # fmt: skip
    save_compact(state, tmp_path / "w.st3w")
    stored, aliases = scan_compact(tmp_path / "w.st3w")
    loaded = load_compact(tmp_path / "w.st3w")
    assert aliases == {"tied": "sparse"}
    assert {item.name: item.zeros for item in stored} == {
        name: value.numel() - int(value.count_nonzero())
        for name, value in loaded.items() if name != "tied"
    }  # fmt: skip


def test_a_mask_that_contradicts_its_values_is_noticed(tmp_path: Path) -> None:
    import hashlib

    save_compact({"w": torch.eye(16)}, tmp_path / "w.st3w")
    content = (tmp_path / "w.st3w").read_bytes()
    magic, version, length, _ = struct.unpack_from("<4sIQ32s", content)
    header, body = json.loads(content[48 : 48 + length]), bytearray(content[48 + length :])
    body[1] |= 1
    header["sha256"] = hashlib.sha256(body).hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    prefix = struct.pack("<4sIQ32s", magic, version, len(text), hashlib.sha256(text).digest())
    (tmp_path / "w.st3w").write_bytes(prefix + text + body)
    for read in (scan_compact, load_compact):
        with pytest.raises(St3fxError, match="other values than its mask says"):
            read(tmp_path / "w.st3w")


def test_a_large_file_is_not_held_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    """One tensor at a time is: no reader of whole files is called."""
    tensors = {f"w{i}": torch.zeros(8, 8) for i in range(4)}
    save_file(tensors, tmp_path / "w.safetensors")
    save_compact(tensors, tmp_path / "w.st3w")
    for place in ("st3fx.files.compact.load_compact", "st3fx.files.tensor_file.load_file"):
        monkeypatch.setattr(place, None)
    for name in ("w.safetensors", "w.st3w"):
        found = look(tmp_path / name)
        assert [layer.zeros for layer in found.layers] == [64] * 4


def test_shards_and_their_index(tmp_path: Path, monkeypatch: Any) -> None:
    """By the index, or by the folder with it; of a large tensor some rows are read at a time."""
    torch.manual_seed(0)
    state = {
        "a.weight": torch.randn(50, 30).to(torch.bfloat16), "a.bias": torch.zeros(50),
        "b.weight": torch.randn(10, 70), "bn.running_mean": torch.zeros(10),
        "c.weight": torch.empty(0, 3),
    }  # fmt: skip
    state["a.weight"][7:20] = 0.0
    state["b.weight"][:, 5:8] = -0.0
    index = shards(tmp_path, state)
    monkeypatch.setattr("st3fx.inspection.weights._AT_A_TIME", 64)
    sizes: list[int] = []
    read = Checkpoint.read

    def watched(self: Checkpoint, *args: Any) -> torch.Tensor:
        found = read(self, *args)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(Checkpoint, "read", watched)
    for place in (index, tmp_path):
        found = look(place)
        assert found.kind == "weights in 2 shards"
        zeros = {layer.name: layer.zeros for layer in found.layers}
        assert zeros == {"a.weight": 13 * 30, "b.weight": 30, "c.weight": 0}
        assert found.parameters == 1500 + 50 + 700
        assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
        assert set(found.files) == {file.name for file in tmp_path.iterdir()}
        assert f"st3fx fold model.st3fx --weights {place}" in found.steps[-1].command
    assert max(sizes) <= 70  # a row of b.weight
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(St3fxError, match="which is missing beside it"):
        look(tmp_path)


def test_layers_turn_themselves_into_json() -> None:
    layer = Layer("w", (3, 4), "float32", 5, "Conv")
    assert layer.elements == 12
    assert layer.to_dict() == {
        "name": "w", "shape": [3, 4], "dtype": "float32", "zeros": 5, "kernel": "Conv",
        "elements": 12,
    }  # fmt: skip
