"""One model with one example of a call: its graph, and the comparison of a file with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor, nn

from st3fx.core.inputs import Example
from st3fx.core.messages import describe
from st3fx.core.state import preserved
from st3fx.errors import ExportError, InputError
from st3fx.export import free, parity
from st3fx.export.batch import batched
from st3fx.export.call import Call, Flat, outputs, unique
from st3fx.export.capture import capture, io_names
from st3fx.export.opset import lowered
from st3fx.export.parity import Opener, open_plain
from st3fx.export.quiet import quiet
from st3fx.export.reduce import reduce
from st3fx.export.result import Parity
from st3fx.export.settings import Settings
from st3fx.export.zeros import used
from st3fx.onnx_passes.fold_batch_norm import BatchNorms
from st3fx.onnx_passes.pipeline import prepare
from st3fx.passes.channels.report import ChannelReport


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
        self.batched = batched(self.call.tensors)
        self.free = free.names(settings.free, self.call.names, self.call.tensors)
        self.flat = Flat(model, self.call).eval()
        self.outputs = self._output_names()
        kinds = {parameter.dtype for parameter in model.parameters()}
        widest = max((parity.TOLERANCES.get(kind, parity.TOLERANCE) for kind in kinds), default=0.0)
        self.tolerance = settings.tolerance or widest or parity.TOLERANCE

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
        self.written, channels = reduce(self.model, self.call, self.batched, fixed_batch=fixed)
        return channels

    def graph(self) -> tuple[ir.Model, BatchNorms, set[str]]:
        """The graph to write, what became of batch norms, and the parameters that are in it."""
        settings = self.settings
        graph = capture(
            Flat(self.written, self.call).eval(),
            self.name,
            self.call.tensors,
            self.batched,
            opset=settings.opset,
            fixed_batch=settings.fixed_batch,
            sizes=self.free,
        )
        names = [name for name, _ in self.written.named_parameters(remove_duplicate=False)]
        expected = used(graph, names)
        with quiet():
            norms = prepare(graph, expected)
            graph = lowered(graph, settings.opset)
        io_names(graph, self.call.names, self.outputs)
        return graph, norms, expected - norms.absorbed

    def compare(
        self, path: Path, *, session: Opener = open_plain, tolerance: float | None = None
    ) -> tuple[Parity, ...]:
        """Run a written file beside the model.

        Args:
            path: The file.
            session: Opens it.
            tolerance: Largest relative difference that passes; ``None``: that of the job.
        """
        if not self.settings.verify:
            return ()
        fixed = self.settings.fixed_batch or not any(self.batched)
        rows = parity.verify(
            path,
            self.flat,
            self.call,
            self.batched,
            self.outputs,
            batch_sizes=() if fixed else self.settings.batch_sizes,
            tolerance=tolerance or self.tolerance,
            seed=self.settings.seed,
            session=session,
        )
        return (*rows, *self._other_sizes(path, session, tolerance or self.tolerance))

    def _other_sizes(self, path: Path, session: Opener, tolerance: float) -> list[Parity]:
        """Run the file at sizes that the example does not have, where some are to be free."""
        if not self.settings.free:
            return []
        calls = list(free.other_sizes(self.call.tensors, self.free))
        taken = [(label, tensors) for label, tensors in calls if self.takes(tensors)]
        if not taken:
            tried = " nor ".join(label for label, _ in calls)
            raise ExportError(f"{self.name} takes no other size: neither {tried}")
        return [self.compare_at(path, t, label, session, tolerance) for label, t in taken]

    def takes(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the model takes other tensors than the example's."""
        return parity.takes(self.flat, tensors)

    def compare_at(
        self, path: Path, tensors: Sequence[Tensor], label: str, session: Opener, tolerance: float
    ) -> Parity:
        """Run a written file beside the model, on these tensors; ``label`` says which they are."""
        return parity.compare(
            session(path), self.flat, tensors, self.outputs, label, tolerance=tolerance
        )
