"""Damaged files of every format: one line and exit 2, soon and in little memory, or no harm done.

A seed chooses a file, a damage and the command that reads the file. Damages are of bytes (bits,
blocks, ends, another kind of file in its place) and of what the format holds: values, types, names
and sizes in JSON and TOML, fields of protobufs, entries of archives. Half of the latter are signed
anew, as by somebody who knows the digest.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import json
import os
import random
import re
import shutil
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load, load_file, save_file

from st3fx.cli.app import main
from st3fx.cli.options import with_budgets
from st3fx.commands.budgets import check_output
from st3fx.commands.compare import compare, gather
from st3fx.commands.sweep import _check_files
from st3fx.commands.train import train_spec
from st3fx.errors import St3fxError
from st3fx.export.write import save_proto, write_model
from st3fx.files.compact import save_compact
from st3fx.files.ours import SEAL
from st3fx.files.reading import sealed
from st3fx.files.seal import write_sealed
from st3fx.methods.targets import parse_targets
from st3fx.report.comparison import CompareResult
from st3fx.report.sweep_page import make_sweep_page
from st3fx.runtime import session
from st3fx.runtime.calibration import load_calibration, save_calibration
from st3fx.runtime.costs import Costs
from st3fx.runtime.onnx_seal import unseal
from st3fx.training import log
from st3fx.training.budgets import allocate
from st3fx.training.recipes import resolve
from st3fx.training.saving import load_checkpoint
from st3fx.training.settings import _HEAD, _head
from tests.bench.made import result
from tests.commands.test_sweep import MADE
from tests.passes.onnx.graphs import graph, lowered, weight
from tests.passes.onnx.quant_kernels.made_nets import MadeNet
from tests.training.runs import settings
from tests.training.test_budgets import CHEAP, DEAR
from tests.training.test_budgets import result as of_layers

SECONDS = 5.0
"""Of the processor, for one file."""

MEMORY = 1 << 30
"""Bytes of memory that it may take at most, beyond what the process has."""


@functools.cache
def _made() -> Path:
    """A folder with one whole file of each format, and what is needed to read them."""
    folder = Path(tempfile.mkdtemp(prefix="st3fx-damage-"))
    os.environ["ST3FX_COSTS"] = str(folder / "costs.json")
    os.environ["ST3FX_TRUST"] = str(folder / "trust.json")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_spec(dataclasses.replace(settings(folder), sparsity=0.8, epochs=1))
        save_calibration(Costs())
    run = folder / "run"
    result().write(run / "bench.json")
    found = of_layers(CHEAP, DEAR)
    found.write(run / "sensitivity.json")
    (folder / "budgets.toml").write_text(allocate(found, 0.5).to_toml())
    swept = dataclasses.replace(MADE, page=run / "sweep.html")
    (run / "sweep.json").write_text(json.dumps(swept.to_dict(), indent=1))
    (run / "sweep.html").write_text(make_sweep_page(swept))
    shutil.move(run / "model.st3fx", folder / "b.st3fx")
    shutil.copy(run / "checkpoints" / "last.pt", folder)
    shutil.copy(run / "folded.safetensors", folder)
    state = load_state_dict(folder)
    save_compact(state, folder / "w.st3w")
    torch.save(state, folder / "w.pt")
    _write_shards(folder / "shards", state)
    (folder / "r.toml").write_text('recipe = "short"\nepochs = 2\n[optimisation]\nlr = 0.1\n')
    _write_graphs(folder)
    resumed = shutil.copytree(run, folder / "resumed")
    (resumed / "checkpoints" / "best.pt").unlink()  # where the last one is damaged, it would do
    shutil.rmtree(run / "checkpoints")
    return folder


def load_state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the folded model."""
    return dict(load_file(folder / "folded.safetensors"))


def _write_shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Two files of weights, and their index."""
    folder.mkdir()
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_graphs(folder: Path) -> None:
    """A dense graph, one with our operators, one of integers."""
    body = """
        a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
        b = Relu(a)
        c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
        d = Flatten(c)
        e = Reshape(d, s)
        y = Gemm<transB = 1>(e, v)
    """
    arrays = {
        "w": weight(8, 3, 3, 3),
        "v": weight(10, 128),
        "s": np.array([-1, 128]),
    }
    dense = graph("float[N,3,8,8] x => float[N,10] y", body, **arrays)
    write_model(dense, folder / "m.onnx")
    write_model(lowered(dense)[0], folder / "m.sparse.onnx")
    save_proto(MadeNet(4).made()[0], folder / "m.int8.onnx")


# Damages of bytes.


def _damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    data, place = bytearray(content), rng.randrange(max(len(content), 1))
    size = rng.choice((1, 4, 16, 256))
    kind = rng.randrange(9)
    if kind < 3 and data:
        for _ in range(rng.choice((1, 1, 3, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        del data[place : place + size]
    elif kind == 5:
        data[place : place + size] = rng.choice((b"\0", b"\xff", b"9", b"[")) * size
    elif kind == 6:
        data[place:place] = data[place : place + size] or b"x"
    elif kind == 7:
        data += rng.choice((b"\0", b"x", b"\n", b"\n{", rng.randbytes(64)))
    else:
        data[:] = rng.choice((b"", b"\0" * 64, b"{}", b"[]", b"null", rng.randbytes(200)))
    return bytes(data)


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1.5, 1e308, -1e-308, 2**31, 2**63 - 1, 2**63, 10**400, 0.0,
    "", "x", "\0", "../../x", "\ud800", "a" * 10_000, "1", "1e5", [], {}, [1], [[]], {"x": 1},
    float("nan"), float("inf"), [None] * 50, "\x1b[31m", "st3fx-bundle", "float32", "model",
)  # fmt: skip


def _deep(rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice((20, 100, 300))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _mutated(rng: random.Random, tree: Any) -> Any:
    """A tree with one value, name or place changed, at any depth."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    if isinstance(tree, dict | list):
        visit(tree)
    if not places:
        return rng.choice(_VALUES)
    (node, key), (other, another) = rng.choice(places), rng.choice(places)
    kind = rng.randrange(7)
    if kind < 3:
        node[key] = rng.choice(_VALUES)
    elif kind == 3:
        del node[key]
    elif kind == 4:
        with contextlib.suppress(RecursionError):
            node[key] = copy.deepcopy(other[another])
    elif kind == 5 and isinstance(node, dict):
        node[rng.choice(("x", "", "\0", f"{key}s"))] = node.pop(key)
    else:
        node[key] = _deep(rng)
    return tree


def _json_text(rng: random.Random, tree: Any) -> bytes:
    """JSON, sometimes with what no writer writes."""
    text = json.dumps(tree)
    kind = rng.randrange(12)
    if kind == 0:
        text = re.sub(r"\d+", "9" * rng.choice((25, 5000, 100_000)), text, count=1)
    elif kind == 1:
        text = text.replace("{", '{"format": "x", "format": "y", ', 1)
    elif kind == 2:
        return b"\xef\xbb\xbf" + text.encode()
    elif kind == 3:
        return text.encode("utf-16")
    elif kind == 4:
        text = "[" * 100_000 + text
    elif kind == 5:
        text = re.sub(r'": "', '": "\\\\u0000', text, count=1)
    return text.encode()


def _damaged_json(rng: random.Random, content: bytes) -> bytes:
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        tree = _mutated(rng, tree)
    if isinstance(tree, dict) and "digest" in tree and rng.random() < 0.7:
        del tree["digest"]
        with contextlib.suppress(UnicodeEncodeError, RecursionError):
            tree = sealed(tree)
    return _json_text(rng, tree)


def _damaged_lines(rng: random.Random, content: bytes) -> bytes:
    """One row of a log, or the rows among each other."""
    lines = content.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind < 3:
        lines[index] = _json_text(rng, _mutated(rng, json.loads(lines[index]))) + b"\n"
    elif kind == 3:
        lines[index] = lines[index][: rng.randrange(len(lines[index]))]
    else:
        lines.insert(index, rng.choice((b"\n", b"null\n", b"{}\n", lines[-1])))
    if rng.random() < 0.5:
        last = ""
        for index, line in enumerate(lines):
            lines[index], last = log._linked(log._parts(line.rstrip(b"\n"))[0], last)
    return b"".join(lines)


_TOML = (
    "true", "1", "-1", "1.5", "inf", "nan", "1e400", "9" * 30, "9" * 5000, '"x"', '""', "[]",
    "[1]", '["x"]', "{a = 1}", "2026-11-30", "[" * 5000, '"\\u0000"', "[[[1]]]", "1_0", "0x10",
    '"""', "'\x1b[31m'", "[inf]", '"a"' * 3, "9223372036854775807", "a" * 10_000,
)  # fmt: skip


def _damaged_toml(rng: random.Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    named = [index for index, line in enumerate(lines) if " = " in line and line[0] != "#"]
    index = rng.choice(named)
    name, _, value = lines[index].partition(" = ")
    kind = rng.randrange(6)
    if kind < 4:
        lines[index] = f"{name} = {rng.choice(_TOML)}"
    elif kind == 4:
        lines.insert(rng.randrange(len(lines)), lines[index])
    else:
        lines[index] = rng.choice((f"{name}x = {value}", ".".join("a" * 2000) + " = 1", "[a", "="))
    if lines[0].startswith(_HEAD) and rng.random() < 0.5:
        rest = "\n".join(lines[1:]).encode()
        return _head(rest) + b"\n" + rest
    return "\n".join(lines).encode()


def _damaged_compact(rng: random.Random, content: bytes) -> bytes:
    """The header of a .st3w, signed."""
    _, version, length, _ = struct.unpack_from("<4sIQ32s", content)
    tree = _mutated(rng, json.loads(content[48 : 48 + length]))
    header = _json_text(rng, tree)
    digest = hashlib.sha256(header).digest()
    size = rng.choice((len(header), len(header), 2**63, 2**30, 0))
    return struct.pack("<4sIQ32s", b"ST3W", version, size, digest) + header + content[48 + length :]


def _damaged_safetensors(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header = _json_text(rng, _mutated(rng, json.loads(content[8 : 8 + length])))
    size = rng.choice((len(header), len(header), 2**63, 2**34, 0))
    return struct.pack("<Q", size) + header + content[8 + length :]


def _damaged_pickle(rng: random.Random, content: bytes) -> bytes:
    """What torch.save wrote, with other values, or packed otherwise; the digest is made anew."""
    if rng.random() < 0.3:
        return _repacked(rng, content)
    tree = torch.load(io.BytesIO(content), weights_only=True)
    tensor = torch.zeros(rng.choice(((), (0,), (3, 2), (64,))))
    odd = (tensor, tensor.to(torch.int8), tensor[:1].expand(10**9) if tensor.dim() == 1 and len(
        tensor) else tensor, tensor.to_sparse(), torch.Size([1]))  # fmt: skip
    keys = list(tree)
    tree[rng.choice(keys)] = rng.choice((*odd, *_VALUES))
    if rng.random() < 0.5:
        tree = _mutated(rng, tree)
    file = io.BytesIO()
    with contextlib.suppress(Exception):
        torch.save(tree, file)
    return _with_seal(rng, content, file.getvalue())


def _repacked(rng: random.Random, content: bytes) -> bytes:
    """The same archive with one entry changed, and a lot of zeros packed to little."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(file, "w") as made:
        names = given.namelist()
        chosen = rng.choice(names)
        for name in names:
            data = given.read(name)
            if name == chosen:
                kind = rng.randrange(3)
                if kind == 0:
                    data = _damaged_bytes(rng, data)
                elif kind == 1:
                    made.writestr(name, bytes(1 << 26), zipfile.ZIP_DEFLATED)
                    continue
                else:
                    continue
            made.writestr(name, data)
    return _with_seal(rng, content, file.getvalue())


def _with_seal(rng: random.Random, content: bytes, changed: bytes) -> bytes:
    """With the digest of a checkpoint at its end, where there was one."""
    if SEAL not in content[-100:] or rng.random() < 0.3:
        return changed
    file = io.BytesIO()
    write_sealed(file, lambda part: part.write(changed))
    return file.getvalue()


# Damages of graphs.


def _messages(message: Any, depth: int = 0) -> list[Any]:
    """A protobuf and all in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None and depth < 12:
            for inner in value if field.is_repeated else [value]:
                found += _messages(inner, depth + 1)
    return found


_NUMBERS = (0, -1, 1, 2, 7, 11, 16, 99, 2**20, 2**31, 2**31 - 1, 2**40, 2**62, -(2**40))


def _other(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(_NUMBERS)
    if isinstance(value, float):
        return rng.choice((0.0, float("nan"), float("inf"), -1e30, 1.0))
    if isinstance(value, str):
        return rng.choice(("", "x", "w", "y", "\0", "Conv", "Loop", "st3fx", "a" * 1000, "\n"))
    return rng.choice((b"", value[:-1], value + b"\0", b"\xff" * len(value)))


def _mutate_message(rng: random.Random, model: onnx.ModelProto) -> None:
    message = rng.choice(_messages(model))
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    with contextlib.suppress(ValueError, TypeError):  # a number that the field cannot have
        if field.is_repeated:
            kind, index = rng.randrange(4), rng.randrange(len(value))
            if kind == 0:
                value.append(value[index])
            elif kind == 1:
                del value[index]
            elif field.message_type is None:
                value[index] = _other(rng, value[index])
            else:
                value.insert(rng.randrange(len(value)), value[index])
        elif field.message_type is not None or rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _other(rng, value))


def _bomb(rng: random.Random, model: onnx.ModelProto) -> None:
    """Something small that becomes large."""
    graph = model.graph
    size = rng.choice((2**20, 2**31, 2**40, 2**62))
    sizes = numpy_helper.from_array(np.array([size, rng.choice((1, 2, size))]), "bomb_sizes")
    graph.initializer.append(sizes)
    kind = rng.randrange(5)
    if kind == 0:
        nodes = [helper.make_node("ConstantOfShape", ["bomb_sizes"], ["bomb"])]
    elif kind == 1:
        one = numpy_helper.from_array(np.ones((1, 1), np.float32), "bomb_one")
        graph.initializer.append(one)
        op = rng.choice(("Expand", "Tile"))
        nodes = [helper.make_node(op, ["bomb_one", "bomb_sizes"], ["bomb"])]
    elif kind == 2:
        for name, number in (("bomb_0", 0), ("bomb_1", size), ("bomb_2", 1)):
            graph.initializer.append(numpy_helper.from_array(np.array(number), name))
        nodes = [helper.make_node("Range", ["bomb_0", "bomb_1", "bomb_2"], ["bomb"])]
    elif kind == 3:
        sparse = graph.sparse_initializer.add(dims=[size, size])
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "bomb"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0])))
        nodes = []
    else:
        graph.initializer.append(
            TensorProto(name="bomb", data_type=rng.choice((1, 8, 14, 17, 21, 25)), dims=[size])
        )
        nodes = []
    graph.node.extend(nodes)
    readers = [node for node in graph.node if node.input]
    if readers and rng.random() < 0.7:
        read = rng.choice(readers)
        read.input[rng.randrange(len(read.input))] = "bomb"


def _damaged_graph(rng: random.Random, content: bytes) -> bytes:
    """Another model, as somebody else may have written it."""
    model = onnx.load_model_from_string(content)
    unseal(model)
    for _ in range(rng.choice((1, 1, 2, 5))):
        (_mutate_message if rng.random() < 0.85 else _bomb)(rng, model)
    with contextlib.suppress(ValueError):
        return bytes(model.SerializeToString())
    return content


# What is damaged, and what reads it.


def _cli(*words: object) -> str | None:
    """Run a command: ``None`` where it went well, or what it said in one line.

    Raises:
        AssertionError: When it said anything else.
    """
    done = CliRunner().invoke(main, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    if done.exit_code == 0:
        return None
    assert done.exit_code == 2, f"exit code {done.exit_code}: {done.stderr[-300:]}"
    assert len(lines) == 1, f"{len(lines)} lines: {done.stderr[-300:]}"
    assert lines[0].startswith("error: "), lines[0]
    return lines[0]


def _call(
    function: Callable[[], Any], notes: Callable[[Any], str | None] = lambda made: None
) -> str | None:
    """The same of a function that a command begins with; ``notes`` are what its result says."""
    try:
        return notes(function())
    except (St3fxError, click.UsageError) as error:
        said = str(error)
    assert "\n" not in said
    return said


@dataclass(frozen=True)
class Kind:
    """A file, and what reads it.

    Attributes:
        file: Its path in the folder that is made ready.
        damage: Of what it holds.
        read: Reads it, given the folder.
        whole: What is copied with it: the first part of its path, by default it alone.
        strict: Whether any change of its bytes must be noticed.
        share: How often it is chosen.
    """

    file: str
    damage: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], str | None]
    strict: bool = False
    share: int = 4


def _report(folder: Path) -> str | None:
    return _cli("report", folder / "run", "--force")


def _resume(folder: Path) -> str | None:
    return _cli("train", "--resume", folder / "resumed", "--trust")


def _bench(name: str) -> Callable[[Path], str | None]:
    options = ("--iterations", 1, "-w", 0, "-ncores", 1, "--json")
    return lambda folder: _cli("bench", folder / name, *options)


def _open(name: str) -> Callable[[Path], str | None]:
    return lambda folder: _call(lambda: session(folder / name, threads=1))


def _weights(name: str) -> Callable[[Path], str | None]:
    spec = "net.py"
    return lambda folder: _cli(
        "analyze", _made() / spec, "-i", "1x1x28x28", "--weights", folder / name, "--json"
    )


def _look(name: str) -> Callable[[Path], str | None]:
    return lambda folder: _cli("inspect", folder / name)


def _compare(folder: Path) -> str | None:
    """What a comparison says of a run: it shows what can be read, and a line for the rest."""
    runs = [folder / "run", _made() / "resumed"]
    return _call(lambda: compare(runs, folder / "page.html"), _notes)


def _notes(made: CompareResult) -> str | None:
    first, *_ = made.comparison.runs
    notes = [*made.comparison.left_out.values()]
    notes += [note for note in first.notes if note not in _usual()] if first.label == "run" else []
    assert all("\n" not in note for note in notes)
    return "; ".join(notes) or None


@functools.cache
def _usual() -> tuple[str, ...]:
    """What is said of the run while it is whole."""
    whole = _made() / "run"
    return gather([whole, _made() / "resumed"], "epoch", lambda _: None).runs[0].notes


def _reuse(folder: Path) -> str | None:
    """Targets from a result that is there."""
    return _cli(
        "sensitivity", _made() / "b.st3fx", "--reuse", "-x", folder / "run" / "sensitivity.json",
        "--budget-macs", 0.5, "-o", folder / "made.toml", "--html", folder / "made.html",
    )  # fmt: skip


def _budgets(folder: Path) -> str | None:
    options = {"sparsity_of": (str(folder / "budgets.toml"),), "sparsity": None}
    return _call(lambda: parse_targets(with_budgets(options)["sparsity_of"]))


def _places(folder: Path) -> str | None:
    """Whether a sweep would replace what is there, which nothing else reads."""
    page = folder / "run" / "sweep.html"
    return _call(lambda: _check_files(page, folder / "run", force=False))


def _costs(folder: Path) -> str | None:
    os.environ["ST3FX_COSTS"] = str(folder / "costs.json")
    return _call(load_calibration)


KINDS = (
    Kind("b.st3fx/manifest.json", _damaged_json, lambda f: _cli(
        "fold", f / "b.st3fx", "--trust", "-o", f / "out.safetensors"), strict=True),
    Kind("b.st3fx/model.safetensors", _damaged_safetensors, lambda f: _cli(
        "fold", f / "b.st3fx", "--trust", "-o", f / "out.safetensors"), strict=True),
    Kind("b.st3fx/graph.txt", _damaged_bytes, lambda f: _cli(
        "fold", f / "b.st3fx", "--trust", "-o", f / "out.safetensors"), strict=True, share=1),
    Kind("last.pt", _damaged_pickle, lambda f: _call(lambda: load_checkpoint(f / "last.pt")),
         strict=True),
    Kind("run/metrics.jsonl", _damaged_lines, _report, strict=True),
    Kind("run/settings.toml", _damaged_toml, _report, strict=True),
    Kind("resumed/checkpoints/last.pt", _damaged_pickle, _resume, strict=True, share=1),
    Kind("resumed/metrics.jsonl", _damaged_lines, _resume, strict=True, share=1),
    Kind("resumed/settings.toml", _damaged_toml, _resume, strict=True, share=1),
    Kind("run/bench.json", _damaged_json, _report, strict=True),
    Kind("run/sensitivity.json", _damaged_json, _report, strict=True),
    Kind("costs.json", _damaged_json, _costs, strict=True),
    Kind("r.toml", _damaged_toml, lambda f: _call(lambda: resolve({}, f / "r.toml"))),
    Kind("w.st3w", _damaged_compact, _weights("w.st3w"), strict=True),
    Kind("w.pt", _damaged_pickle, _weights("w.pt")),
    Kind("folded.safetensors", _damaged_safetensors, _weights("folded.safetensors"), strict=True),
    Kind("shards/model.safetensors.index.json", _damaged_json, _weights("shards")),
    Kind("shards/model-1.safetensors", _damaged_safetensors, _weights("shards"), share=1),
    Kind("m.onnx", _damaged_graph, lambda f: _cli("analyze", f / "m.onnx", "--json"), strict=True),
    Kind("m.sparse.onnx", _damaged_graph, lambda f: _cli("analyze", f / "m.sparse.onnx"),
         strict=True),
    Kind("m.int8.onnx", _damaged_graph, lambda f: _cli("analyze", f / "m.int8.onnx"), strict=True,
         share=2),
    Kind("m.int8.onnx", _damaged_graph, lambda f: _cli(
        "export", f / "m.int8.onnx", "--sparse-kernels", "-o", f / "out.onnx"), strict=True,
         share=1),
    *(Kind(file, damage, _look(file.removesuffix("/manifest.json")), strict=strict, share=1)
      for file, damage, strict in (
        ("b.st3fx/manifest.json", _damaged_json, True), ("last.pt", _damaged_pickle, True),
        ("w.st3w", _damaged_compact, True), ("w.pt", _damaged_pickle, False),
        ("folded.safetensors", _damaged_safetensors, True), ("m.onnx", _damaged_graph, True),
        ("m.sparse.onnx", _damaged_graph, True), ("m.int8.onnx", _damaged_graph, True))),
    Kind("m.onnx", _damaged_graph, _bench("m.onnx"), strict=True, share=1),
    Kind("m.sparse.onnx", _damaged_graph, _bench("m.sparse.onnx"), strict=True, share=1),
    Kind("m.sparse.onnx", _damaged_graph, _open("m.sparse.onnx"), strict=True, share=2),
    *(Kind(f"run/{file}", damage, read, strict=True, share=1)
      for file, damage in (
        ("metrics.jsonl", _damaged_lines), ("settings.toml", _damaged_toml),
        ("bench.json", _damaged_json))
      for read in (_compare, _look("run")) if read is _compare or file != "bench.json"),
    Kind("run/sensitivity.json", _damaged_json, _reuse, strict=True, share=2),
    Kind("run/sweep.json", _damaged_json, _places, share=1),
    Kind("run/sweep.html", _damaged_bytes, _places, share=1),
    Kind("run/sensitivity.json", _damaged_json, lambda f: _call(
        lambda: check_output(f / "run" / "sensitivity.json", force=False)), share=1),
    Kind("budgets.toml", _damaged_toml, _budgets, share=2),
)  # fmt: skip


def _replace(rng: random.Random, path: Path) -> None:
    """Put something that is no file of the format, or no file, in its place."""
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/full", path.name, "/nowhere")))
    elif kind == 3:
        path.touch()
        os.truncate(path, 5 << 30)
    elif kind == 4:
        names = [one.file for one in KINDS]
        shutil.copy(_made() / rng.choice(names), path)


def case(seed: int, folder: Path) -> str | None:
    """Damage one file and read it."""
    rng, made = random.Random(seed), _made()
    kind = rng.choices(KINDS, [one.share for one in KINDS])[0]
    top = Path(kind.file).parts[0]
    copied = shutil.copytree if (made / top).is_dir() else shutil.copy
    copied(made / top, folder / top)
    path, how = folder / kind.file, rng.random()
    content = path.read_bytes()
    foreign = not 0.06 <= how < 0.45
    if how < 0.06:
        _replace(rng, path)
    elif how < 0.45:
        path.write_bytes(_damaged_bytes(rng, content))
    else:
        path.write_bytes(kind.damage(rng, content))
    same = path.is_file() and path.stat().st_size < 1 << 30 and path.read_bytes() == content
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began = _memory(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # they are lines for the user, and no errors
        said = kind.read(folder)
    seconds, memory = time.process_time() - began, _memory() - before
    where = f"{kind.file} ({said})"
    if seconds > SECONDS:
        return f"{where} took {seconds:.1f} s"
    if memory > MEMORY:
        return f"{where} took {memory / 2**30:.1f} GB"
    ours = kind.strict and not foreign and not same and path.exists()
    if said is None and ours and not _means_the_same(path, content):
        return f"{kind.file} was changed, and taken"
    return None


def _means_the_same(path: Path, content: bytes) -> bool:
    """Whether a change was of what means nothing, as of the digest alone."""
    if not path.is_file():
        return False
    if path.suffix == ".onnx":
        return bool(onnx.load(path).graph == onnx.load_model_from_string(content).graph)
    if path.suffix == ".safetensors":
        now, then = load(path.read_bytes()), load(content)
        return now.keys() == then.keys() and all(now[key].equal(then[key]) for key in now)
    if path.suffix == ".jsonl":  # it ends earlier, as it did before; half a row is said
        rows = path.read_bytes()
        return content.startswith(rows[: rows.rfind(b"\n") + 1])
    if path.suffix == ".json":
        return bool(json.loads(path.read_bytes()) == json.loads(content))
    return False


def _memory() -> int:
    """Bytes of memory that the process has had at most since that was last forgotten."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmHWM:")[2].split()[0]) << 10
