"""One model with one example of a call: its graph, and the comparison of a file with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir
from torch import Tensor, nn
from torch.export import ExportedProgram

from st3fx.errors import ExportError, InputError, describe
from st3fx.export import batch, parity
from st3fx.export.batch import batch_size
from st3fx.export.call import Call, Flat, outputs, unique
from st3fx.export.capture import capture, io_names, quiet
from st3fx.export.export_result import Parity
from st3fx.export.first_difference import first_difference
from st3fx.export.parity import Bound, Criteria, Opener, open_plain
from st3fx.export.reduced import reduce
from st3fx.export.settings import Settings, lowered, needed_opset
from st3fx.export.zeros import used
from st3fx.modules.state import preserved
from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.passes.onnx.fold_batch_norm import FoldBatchNorm
from st3fx.passes.onnx.pipeline import prepare
from st3fx.plan.example import Example

Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedGraph:
    """A graph that is to be written.

    Attributes:
        graph: The graph.
        norms: What became of batch norms.
        parameters: Names of the parameters that are in it.
        renamed: Name of a parameter -> that of its initializer, where it has another.
    """

    graph: ir.Model
    norms: FoldBatchNorm
    parameters: set[str]
    renamed: dict[str, str]


class Job:
    """One model with one example of a call.

    Attributes:
        model: What a file is compared with.
        written: What goes into it: the model, or its graph without dead channels.
    """

    def __init__(self, model: nn.Module, example: Example, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.written = model
        self.name = type(model).__name__
        self.call = Call.of(model, example)
        named = batch.names(settings.free, self.call.names, self.call.tensors)
        self._places = list(batch.batch_dims(named, self.call.tensors))
        self.free = batch.without_batch(named)
        self._program: ExportedProgram | None = None
        self.flat = Flat(model, self.call)
        self.outputs = self._output_names()
        kinds = {parameter.dtype for parameter in model.parameters()}
        widest = max((parity.TOLERANCES.get(kind, parity.TOLERANCE) for kind in kinds), default=0.0)
        self.tolerance = settings.tolerance or widest or parity.TOLERANCE

    @property
    def batched(self) -> tuple[int | None, ...]:
        """Which dimension of each tensor is the batch."""
        return self._places[0]

    @property
    def is_free(self) -> bool:
        """Whether the batch size is free."""
        has = batch_size(self.call.tensors, self.batched) is not None
        return has and not self.settings.fixed_batch

    def _output_names(self) -> tuple[str, ...]:
        # Clones: a forward may write into its inputs.
        args, kwargs = self.call.arguments([tensor.clone() for tensor in self.call.tensors])
        try:
            with preserved(self.model):
                result = self.model(*args, **kwargs)
        except Exception as error:
            raise InputError(
                f"{self.name} refuses the example inputs in eval mode: {describe(error)}"
            ) from error
        names = unique([name for name, _ in outputs(result)])
        if not names:
            raise ExportError(f"{self.name} returns no tensor: an ONNX model would have no output")
        both = set(names) & set(self.call.names)
        return unique([f"{n}_out" if n in both else n for n in names])

    def reduce(self) -> ChannelReport:
        """Write a graph without dead channels instead of the model."""
        fixed = self.settings.fixed_batch
        self.written, channels = self._placed(
            lambda: reduce(self.model, self.call, self.batched, fixed_batch=fixed)
        )
        return channels

    def _placed(self, run: Callable[[], Result]) -> Result:
        """Run with the first of the places for the batch with which it can be."""
        while len(self._places) > 1:
            try:
                return run()
            except ExportError:
                del self._places[0]
        return run()

    def graph(self) -> PreparedGraph:
        """The graph to write, and what became of the model's parts in it."""
        opset = self.settings.opset
        graph, norms, expected = self._placed(lambda: self._captured(opset))
        least = needed_opset(graph, opset)
        if least is not None:
            graph, norms, expected = self._captured(opset := least)
        with quiet():
            graph = lowered(graph, opset)
        renamed = io_names(graph, self.call.names, self.outputs)
        return PreparedGraph(graph, norms, expected - norms.absorbed, renamed)

    def _captured(self, opset: int | None) -> tuple[ir.Model, FoldBatchNorm, set[str]]:
        """The graph as the exporter gives it, prepared, and the parameters that it had."""
        captured = capture(
            Flat(self.written, self.call),
            self.name,
            self.call.tensors,
            self.batched,
            opset=opset,
            fixed_batch=self.settings.fixed_batch,
            sizes=self.free,
        )
        graph, self._program = captured.graph, captured.program
        names = [name for name, _ in self.written.named_parameters(remove_duplicate=False)]
        expected = used(graph, names)
        with quiet():
            return graph, prepare(graph, expected), expected

    def compare(
        self,
        path: Path,
        *,
        session: Opener = open_plain,
        tolerance: float | None = None,
        bounds: Callable[[Sequence[Tensor]], Sequence[Bound]] | None = None,
    ) -> tuple[Parity, ...]:
        """Run a written file beside the model.

        Args:
            path: The file.
            session: Opens it.
            tolerance: Largest relative difference that passes; ``None``: that of the job.
            bounds: As of a :class:`Criteria`.
        """
        if not self.settings.verify:
            return ()
        allowed = tolerance or self.tolerance

        def explain(tensors: Sequence[Tensor]) -> str:
            if self._program is None:
                return ""
            return first_difference(path, self._program, tensors, session, allowed)

        criteria = Criteria(self.outputs, allowed, bounds, explain)
        rows = parity.verify(
            path,
            self.flat,
            self.call,
            self.batched,
            criteria,
            batch_sizes=self.settings.batch_sizes if self.is_free else (),
            seed=self.settings.seed,
            session=session,
        )
        return (*rows, *self._other_sizes(session(path), criteria))

    def _other_sizes(self, session: Any, criteria: Criteria) -> list[Parity]:
        """Run the file at sizes that the example does not have, where some are to be free."""
        if not any(self.free):
            return []
        calls = list(batch.other_sizes(self.call.tensors, self.free))
        taken = [(label, tensors) for label, tensors in calls if parity.takes(self.flat, tensors)]
        if not taken:
            tried = " nor ".join(label for label, _ in calls)
            raise ExportError(f"{self.name} takes no other size: neither {tried}")
        return [parity.compare(session, self.flat, t, criteria, label) for label, t in taken]
