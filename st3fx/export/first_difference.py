"""Names the layer in which a file begins to compute something else than its model.

Values of the graph have the names that the capture gave them. The captured graph runs node by node
in PyTorch, the file with all of its values as outputs, on the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from st3fx.export.parity import Array, Opener, as_array, difference
from st3fx.passes.onnx.plain_operators import blocked_values
from st3fx.runtime.layout import from_blocked


def first_difference(
    path: Path,
    program: ExportedProgram,
    tensors: Sequence[Tensor],
    session: Opener,
    tolerance: float,
) -> str:
    """The first layer whose output differs, as ``layer1.conv (Conv), by 0.3 relative``.

    Args:
        path: The ONNX file. Another one is written beside it for a moment.
        program: What it was made from.
        tensors: Inputs.
        session: Opens a file.
        tolerance: Largest relative difference that does not count.

    Returns:
        Nothing where no value differs, or where either of the two cannot be run value by value.
    """
    try:
        wanted = _values(program, tensors)
        model = onnx.load(path, load_external_data=False)
        given = _file_values(model, path, wanted, tensors, session)
    except Exception:  # noqa: BLE001 (what failed is being told; this only says more of it)
        return ""
    nodes = {node.name: node for node in program.graph.nodes}
    for made in model.graph.node:
        for name in made.output:
            if name in given and given[name].shape == wanted[name].shape:
                _, relative = difference(wanted[name], given[name])
                if not relative <= tolerance:
                    how = f", by {relative:.2g} relative" if np.isfinite(relative) else ""
                    return f"{_layer(nodes[name], made, program)}{how}"
    return ""


def _file_values(
    model: onnx.ModelProto,
    path: Path,
    wanted: Mapping[str, Array],
    tensors: Sequence[Tensor],
    session: Opener,
) -> dict[str, Array]:
    """What the file computes on the way, for the names that are known."""
    blocked = blocked_values(model.graph)
    there = {value.name for value in (*model.graph.output, *model.graph.input)}
    names = [n for node in model.graph.node for n in node.output if n in wanted and n not in there]
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    trial = path.with_name(f"values.{path.name}")
    try:
        trial.write_bytes(whole.SerializeToString())
        running = session(trial)
        ports = [port.name for port in running.get_inputs()]
        feeds = {name: as_array(t) for name, t in zip(ports, tensors, strict=True)}
        found = dict(zip(names, running.run(names, feeds), strict=True))
    finally:
        trial.unlink(missing_ok=True)
    return {
        name: from_blocked(array, blocked[name]) if name in blocked else array
        for name, array in found.items()
    }


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what its nodes give, where these are tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op == "call_function":
            self.found[n.name] = as_array(result)
        return result


@torch.no_grad()
def _values(program: ExportedProgram, tensors: Sequence[Tensor]) -> dict[str, Array]:
    """What the captured graph computes on the way; name of the node -> value."""
    recorder = _Recorder(program.graph_module)
    recorder.run(*_inputs(program, tensors), enable_io_processing=False)
    return recorder.found


def _inputs(program: ExportedProgram, tensors: Sequence[Tensor]) -> Iterator[Any]:
    """What the graph's placeholders stand for, in their order: parameters, buffers, the tensors."""
    rest = (tensor.clone() for tensor in tensors)
    kept = {**program.constants, **program.state_dict}
    for spec in program.graph_signature.input_specs:
        yield next(rest) if spec.kind is InputKind.USER_INPUT else kept[str(spec.target)]


def _layer(node: fx.Node, made: onnx.NodeProto, program: ExportedProgram) -> str:
    """The module that a value is of, or the parameter that it is computed with."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    name = path.removeprefix("model").removeprefix(".")
    if not name:
        targets = {
            spec.arg.name: str(spec.target) for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.PARAMETER and hasattr(spec.arg, "name")
        }  # fmt: skip
        used = [targets[item.name] for item in node.all_input_nodes if item.name in targets]
        name = used[0].removeprefix("model.") if used else ""
    return f"{name} ({made.op_type})" if name else made.op_type
