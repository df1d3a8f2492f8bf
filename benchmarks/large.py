"""Large models: what converting on the meta device, and folding shards, cost in time and memory.

    python -m benchmarks.large make DIR --gigabytes 10      # a checkpoint of random bf16 weights
    python -m benchmarks.large run DIR                      # convert, explain, fold; then the table
    python -m benchmarks.large run DIR --in-memory          # and the same fold in memory, compared

The models are Llamas of the widths of the one with 8 billion parameters; ``make`` takes as many
layers as fit. Each command runs in a process of its own; its peak is the largest resident memory
that the system saw of it (``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import record
from st3fx.files.shards import open_checkpoint

SPARSITY = 0.5

MODEL = """
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = json.loads((Path(__file__).parent / "layers.json").read_text())


def build(layers):
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        rope_theta=500000.0, use_cache=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def build_model():
    return build(LAYERS)


def whole():
    return build(32)


def example_inputs():
    return {"input_ids": torch.zeros(1, 16, dtype=torch.long)}
"""

_SPARE = 1.06e9
"""Parameters of the embedding, the head and the last norm."""

_LAYER = 218.1e6
"""Parameters of a layer."""


def main() -> None:
    """Make a checkpoint, or measure with one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--shard", type=float, default=2.0, help="gigabytes of a shard")
    parser.add_argument("--sparsity", type=float, default=SPARSITY)
    parser.add_argument("--granularity", default="unstructured")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "large_cpu.json")
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, options.gigabytes, options.shard)
        return
    rows = measure(options)
    table = Table("command", "seconds", "processor's", "peak GB")
    for row in rows:
        numbers = (f"{row[key]:.2f}" for key in ("seconds", "processor", "peak_gb"))
        table.add_row(row["name"], *numbers)
    Console().print(table)
    about = json.loads((options.folder / "about.json").read_text(encoding="utf-8"))
    environment = record.environment(**about, sparsity=options.sparsity,
                                     granularity=options.granularity)  # fmt: skip
    record.write(options.output, {"environment": environment, "rows": rows})


def make(folder: Path, gigabytes: float, shard: float) -> None:
    """Write shards and their index; one shard is in memory at a time."""
    folder.mkdir(parents=True)
    layers = max(1, round((gigabytes * 5e8 - _SPARE) / _LAYER))
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    (folder / "layers.json").write_text(str(layers), encoding="utf-8")
    model = _build(folder)
    torch.manual_seed(0)
    files: dict[str, str] = {}
    plan = list(_split(model.state_dict(), shard * 1e9))
    for number, names in enumerate(plan, 1):
        file = f"model-{number:05}-of-{len(plan):05}.safetensors"
        own = {name: _values(model.state_dict()[name]) for name in names}
        save_file(own, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    found = open_checkpoint(folder)
    about = {"layers": layers, "shards": len(plan), "bytes": found.nbytes,
             "parameters": sum(entry.numel for entry in found.entries.values())}  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    print(about)


def _build(folder: Path) -> nn.Module:
    scope: dict[str, Any] = {"__file__": str(folder / "model.py"), "__name__": "large"}
    exec(compile(MODEL, "model.py", "exec"), scope)
    model: nn.Module = scope["build_model"]()
    return model


def _split(state: dict[str, Tensor], size: float) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, tensor in state.items():
        if names and held + tensor.nbytes > size:
            yield names
            names, held = [], 0
        names.append(name)
        held += tensor.nbytes
    yield names


def _values(like: Tensor) -> Tensor:
    """Random weights as an initialisation makes them: norms are 1.

    All are of one block, over and over: drawing each would take most of the time.
    """
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=like.dtype)
    found = torch.empty(like.shape, dtype=like.dtype)
    for part in found.view(-1).split(_BLOCK):
        part.copy_(_block()[: len(part)])
    return found


_BLOCK = (1 << 26) - 5
"""Weights that are drawn; no row of a model begins where another does."""


@functools.cache
def _block() -> Tensor:
    return torch.empty(_BLOCK).normal_(std=0.02).to(torch.bfloat16)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run each command in a process of its own."""
    folder = options.folder.resolve()
    made = [folder / name for name in ("whole.st3fx", "made.st3fx", "folded")]
    for path in made:
        shutil.rmtree(path, ignore_errors=True)
    whole, bundle, folded = map(str, made)
    model, index = str(folder / "model.py"), str(folder / "model.safetensors.index.json")
    how = ["--granularity", options.granularity]
    rows = [
        _timed("import st3fx, transformers", ["-c", "import st3fx, transformers.models.llama"]),
        _timed("convert, 8 B on meta", _st3fx("convert", f"{model}:whole", "-q", "-o", whole)),
        _timed("its --explain", _st3fx("convert", f"{model}:whole", "--explain", "lm_head.weight")),
        _timed("convert, the checkpoint's", _st3fx("convert", model, "-q", "-o", bundle, *how)),
        _timed("fold its shards", _st3fx("fold", bundle, "--weights", index, "--sparsity",
                                         str(options.sparsity), "-o", folded)),
    ]  # fmt: skip
    if options.in_memory:
        loaded, one = str(folder / "loaded.st3fx"), str(folder / "one.safetensors")
        rows += [
            _timed("convert --weights", _st3fx("convert", model, "-q", "-o", loaded, "--force",
                                               "--weights", index, *how)),
            _timed("fold in memory", _st3fx("fold", loaded, "--sparsity", str(options.sparsity),
                                            "-o", one, "--force")),
        ]  # fmt: skip
        rows.append({**rows[-1], "name": f"equal: {_equal(made[2], Path(one))}"})
    return rows


def _st3fx(*arguments: str) -> list[str]:
    return ["-m", "st3fx", *arguments]


def _timed(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Seconds, the processor's seconds, and the largest resident memory of a child.

    Raises:
        RuntimeError: When it fails.
    """
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{name} ended with {child.returncode}")
    row = {"name": name, "seconds": round(seconds, 2),
           "processor": round(used.ru_utime + used.ru_stime, 2),
           "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 3)}  # fmt: skip
    print(row, flush=True)
    return row


def _equal(folder: Path, one: Path) -> bool:
    """Whether shards hold what one file holds, tensor by tensor."""
    shards, file = open_checkpoint(folder), open_checkpoint(one)
    if set(shards.entries) != set(file.entries):
        return False
    return all(torch.equal(shards.read(name), file.read(name)) for name in shards.entries)


if __name__ == "__main__":
    main()
