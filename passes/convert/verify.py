"""Verify: the converted model computes what the original computes, bit for bit, before it is used.

Original and converted model are the same modules with the sparse forwards taken out and put in, and
gradients are kept as digests, so that verification holds no second copy of either. Compared are

1. output and buffers in train mode under two seeds, and gradients under the first, before the
   first threshold;
2. the output in eval mode, and with one more sample;
3. at a trial threshold: the eval output, and output and gradients of a training step, against the
   original forward over the effective weights as they are (with computed weights: the eval output
   against the folded model's).

Where the model differs, it is found out what is to blame: graphs of islands, each tried alone, or a
site whose gradient is another.

What verification runs: a converted model, and its original on the same modules.

At a trial threshold a converted model computes with exactly the effective weights.

It is compared with the original forward over the effective weights as they are; with computed
weights, whose forward makes them anew, with the folded model.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx import under_way
from st3fx.errors import VerificationError, few
from st3fx.graphs.forward import SparseForward
from st3fx.methods.base import Method
from st3fx.modules.converted import leave
from st3fx.modules.copying import copied
from st3fx.modules.hooks import has_backward_hooks
from st3fx.modules.marks import homes, is_entered, is_state, state_name
from st3fx.modules.state import (
    LeftBehind,
    deterministic,
    preserved,
    preserved_rng,
    seed_everything,
    settled,
    single_thread,
)
from st3fx.passes.convert.discover import Discovery
from st3fx.passes.convert.equality import (
    Difference,
    MismatchError,
    converted,
    detached,
    digest,
    equal,
    require_equal,
)
from st3fx.passes.convert.fold import clean, effective, fold_in_place, projections
from st3fx.passes.convert.islands import Archipelago
from st3fx.passes.convert.observation import Observation, TrialRun
from st3fx.passes.convert.written import Kept
from st3fx.plan.example import Example
from st3fx.plan.names import is_below, owner
from st3fx.sparsifier.bound import Bound, bound_sites
from st3fx.sparsifier.run import run_of
from st3fx.tensors import is_dense


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        model: With ``forwards`` installed.
        example: A call as in training.
        forwards: All sparse forwards of the model.
        left: Mode -> what a call leaves in attributes: graphs are captured as of the second call.
        written: Parameters that the forward writes to -> tensors that have their values.
    """

    model: nn.Module
    example: Example
    forwards: Sequence[SparseForward]
    left: Mapping[bool, Sequence[LeftBehind]]
    written: Mapping[str, Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Whatever runs inside, the model is afterwards as it was, its parameters too."""
        kept = Kept(self.model, self.written)
        with preserved(self.model):
            try:
                yield
            finally:
                kept.set_back()

    @contextlib.contextmanager
    def original(self) -> Iterator[None]:
        """The model as it was before the conversion, inside."""
        classes = {module: type(module) for module in self.model.modules() if is_entered(module)}
        for forward in self.forwards:
            forward.uninstall()
        for module in classes:
            leave(module)
        try:
            yield
        finally:
            for module, cls in classes.items():
                module.__class__ = cls
            for forward in self.forwards:
                forward.install()

    def forward(self, seed: int) -> Any:
        """The output in train mode."""
        with torch.enable_grad():
            return self._run(self.example, True, seed)

    def step(self, seed: int) -> Any:
        """The output in train mode, with the gradients of a loss of it in the parameters."""
        with torch.enable_grad():
            output = self.forward(seed)
            losses = [
                _weighted_sum(leaf)
                for leaf in pytree.tree_leaves(output)
                if isinstance(leaf, Tensor) and leaf.requires_grad
            ]
            if losses:
                torch.stack(losses).sum().backward()
        return output

    def evaluate(self, example: Example | None = None) -> Any:
        """The output in eval mode, of the example or of another call."""
        with torch.no_grad():
            return self._run(example or self.example, False, 0)

    def _run(self, example: Example, training: bool, seed: int) -> Any:
        seed_everything(seed)
        under_way.advance()
        with settled(self.left[training]):
            return example.run(self.model.train(training))


def _weighted_sum(tensor: Tensor) -> Tensor:
    """A loss that no normalisation makes constant: each element with another weight."""
    if not is_dense(tensor):
        # Of sparse and nested tensors only some operators have gradients.
        tensor = tensor.to_padded_tensor(0.0) if tensor.is_nested else tensor.to_dense()
    weights = (
        torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device).mul_(0.7).sin_()
    )
    loss: Tensor = (tensor.flatten().float() * weights).mean() * tensor.numel() ** 0.5
    return loss


@contextlib.contextmanager
def own_gradients(model: nn.Module) -> Iterator[None]:
    """Empty gradients inside, the present ones back afterwards."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, grad in saved:
            parameter.grad = grad


def compare_trial(subject: Subject, trial: dict[str, Tensor], training: bool) -> None:
    """Compare a training step, or the eval output.

    Args:
        subject: Left as it was.
        trial: State tensors -> the value for the trial threshold, by full name.
        training: Which of the two.

    Raises:
        MismatchError: If they differ.
    """
    model = subject.model
    held = bound_sites(model, run_of(model))
    if any(item.compute is not None for item in held):
        if not training:
            _compare_fold(subject, trial)
        return
    what = f"{'training step' if training else 'eval output'} at a trial threshold"

    def run() -> Any:
        return subject.step(0) if training else subject.evaluate()

    with subject.preserved(), own_gradients(model), _thresholds(model, trial):
        with subject.preserved(), converted(what):
            sparse = detached(run())
        gradients = {item.site.name: digest(item.weight().grad) for item in held}
        tied = projections(model, held)
        sums = {n: item.weight().grad for item in held if (n := item.site.name) in tied}
        model.zero_grad(set_to_none=True)
        static = _effective_leaves(held)
        with subject.preserved(), subject.original(), _in_place_of_weights(held, static):
            expected = run()
        expected_gradients = {item.site.name: _latent_gradient(item, static) for item in held}
        lookups = {n: item.weight().grad for item in held if (n := item.site.name) in tied}
    require_equal(expected, sparse, what)
    for name, gradient in expected_gradients.items():
        if name in tied:
            same = _is_sum(sums[name], gradient, lookups[name])
        else:
            same = digest(gradient) == gradients[name]
        if not same:
            raise MismatchError(f"gradient of {name} at a trial threshold", name)


def _is_sum(total: Tensor | None, projection: Tensor | None, lookups: Tensor | None) -> bool:
    """Whether a tied table's gradient is its projection's and its lookups' together.

    There may be several lookups, and autograd adds up in another order where the projection is a
    tensor of its own: up to the rounding of such a sum.
    """
    parts = [part.double() for part in (projection, lookups) if part is not None]
    if total is None or not parts:
        return total is None and not parts
    bound = 4 * torch.finfo(total.dtype).eps * sum(part.abs() for part in parts)
    return bool(((total.double() - sum(parts)).abs() <= bound).all())


def _latent_gradient(held: Bound, static: dict[str, Tensor]) -> Tensor | None:
    """What the method makes of the effective weight's gradient; all uses of it added up before."""
    upstream = static[held.site.name].grad
    if upstream is None or held.sparse.method.straight_through:
        return upstream
    with torch.enable_grad():
        return torch.autograd.grad(held.effective(), held.weight(), upstream)[0]


def _compare_fold(subject: Subject, trial: dict[str, Tensor]) -> None:
    """With computed weights, only the folded model has static weights to compare with."""
    what = "eval output at a trial threshold"
    with subject.preserved(), _thresholds(subject.model, trial):
        with subject.preserved(), converted(what):
            sparse = subject.evaluate()
        folded = fold_in_place(copied(subject.model))
    twin = dataclasses.replace(subject, model=folded, left={False: ()})
    with preserved_rng():
        require_equal(twin.evaluate(), sparse, what)


@contextlib.contextmanager
def _thresholds(model: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Other thresholds, attributes or parameters, inside."""
    places = {name: (model.get_submodule(owner(name)), name.rpartition(".")[2]) for name in values}
    saved = {name: getattr(*place) for name, place in places.items()}
    held = {name: tensor.detach().clone() for name, tensor in saved.items()}
    try:
        with torch.no_grad():
            for name, value in values.items():
                if isinstance(saved[name], nn.Parameter):
                    saved[name].copy_(value)
                else:  # one that splits a tie has another shape
                    places[name][0].__dict__[places[name][1]] = value.clone()
        yield
    finally:
        with torch.no_grad():
            for name, tensor in saved.items():
                if isinstance(tensor, nn.Parameter):
                    tensor.copy_(held[name])
                else:
                    places[name][0].__dict__[places[name][1]] = tensor


def _effective_leaves(held: Sequence[Bound]) -> dict[str, Tensor]:
    """Effective weight by site, as leaves that collect their own gradients."""
    with torch.no_grad():
        return {
            item.site.name: nn.Parameter(clean(effective(item)), item.weight().requires_grad)
            for item in held
        }


@contextlib.contextmanager
def _in_place_of_weights(held: Sequence[Bound], static: dict[str, Tensor]) -> Iterator[None]:
    latent = [item.weight() for item in held]
    for item in held:
        item.put(static[item.site.name])
    try:
        yield
    finally:
        for item, weight in zip(held, latent, strict=True):
            item.put(weight)


SEEDS = (0, 1)

_RUNS = 12
"""Calls of an example where nothing differs: of the original and of the converted model each, two
in train mode, one in eval mode, one in each at a trial threshold, one with a larger batch."""


@deterministic()
def differs(subject: Subject, trial: dict[str, Tensor]) -> Difference | None:
    """Compare a converted model with its original, with deterministic cuDNN kernels.

    Args:
        subject: Left as it was.
        trial: State tensors -> the value for the trial threshold, by full name.

    Returns:
        What differs first, or ``None``.
    """
    try:
        for seed in SEEDS:
            _compare_training(subject, seed)
        modes = [True]
        if _compare_eval(subject, subject.example, "eval output"):
            modes.append(False)
        for training in modes:
            compare_trial(subject, trial, training)
        larger = subject.example.larger_batch()
        if larger is not None:
            _compare_eval(subject, larger, "eval output with one more sample")
    except MismatchError as mismatch:
        return mismatch.difference
    return None


def _compare_training(subject: Subject, seed: int) -> None:
    expected, gradients, buffers = {}, {}, {}
    model = subject.model
    run = subject.step if seed == SEEDS[0] else subject.forward
    with subject.preserved(), subject.original(), own_gradients(model):
        expected = detached(_original_step(subject, run, seed))
        gradients = {name: digest(p.grad) for name, p in _own_parameters(model)}
        buffers = {n: b.clone() for n, b in _stateful(subject)}
    with subject.preserved(), own_gradients(model):
        with converted("train output"):
            output = run(seed)
        require_equal(expected, output, f"train output, {seed=}")
        for name, parameter in _own_parameters(model):
            if digest(parameter.grad) != gradients[name]:
                raise MismatchError(f"gradient of {name}, {seed=}")
        for name, tensor in _stateful(subject):
            if name not in buffers or not equal(tensor, buffers[name]):
                raise MismatchError(f"{name} after a training step, {seed=}")


def _original_step(subject: Subject, run: Callable[[int], Any], seed: int) -> Any:
    """A step of the original; what fails there fails without the conversion too.

    Raises:
        VerificationError: If it does.
    """
    try:
        return run(seed)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationError(
            f"{type(subject.model).__name__} itself fails in a training step on the example: "
            f"{type(error).__name__}: {reason[0]}; if it is meant to, use verify=False"
        ) from error


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The user's parameters: not the learned thresholds, which the original does not have."""
    for name, parameter in model.named_parameters():
        if not is_state(name):
            yield name, parameter


def _stateful(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """What a call changes: buffers, and parameters that the forward writes to."""
    yield from subject.model.named_buffers()
    for name in subject.written:
        yield name, subject.model.get_parameter(name).detach()


def _compare_eval(subject: Subject, example: Example, what: str) -> bool:
    """Compare one eval output; False if the original itself refuses this call in eval mode."""
    with subject.preserved(), subject.original():
        try:
            expected = detached(subject.evaluate(example))
        except Exception:  # noqa: BLE001 - whatever a user's forward raises
            return False
    with subject.preserved(), converted(what):
        output = subject.evaluate(example)
    require_equal(expected, output, what)
    return True


@dataclass(frozen=True)
class Faults:
    """What a conversion has to leave out, because the model differs from its original with it.

    Attributes:
        islands: Names of the islands whose graphs compute something else.
        sites: Name of a site that no graph is to blame for -> why it cannot be sparse.
    """

    islands: frozenset[str] = frozenset()
    sites: Mapping[str, str] = field(default_factory=dict)


def find_faults(
    model: nn.Module,
    examples: Sequence[Example],
    source: Mapping[str, Tensor],
    observed: Observation,
    found: Discovery,
    islands: Archipelago,
    forwards: Sequence[SparseForward],
    method: Method,
) -> Faults | None:
    """Compare a converted model with its original in all examples.

    The fault is a graph that differs, or a site whose gradient differs although no graph does
    (activation checkpointing around a weight).

    Args:
        model: Left as it was.
        examples: Calls as in training.
        source: Full name of a parameter -> a tensor that has its values and keeps them.
        observed: What the original does.
        found: The sites.
        islands: Whose graphs may be to blame.
        forwards: What was installed.
        method: Gives trial thresholds.

    Returns:
        What has to be left out, or ``None`` if nothing differs.

    Raises:
        VerificationError: If the model differs for no such reason, or has weights that are NaN.
    """
    _require_numbers(model, found)
    subjects = _subjects(model, examples, source, observed, forwards)
    under_way.begin(_RUNS * len(subjects))
    captured = [forward for forward in forwards if forward.name in islands.captures]
    kept = Kept(model, source)
    try:
        trial = _trial(model, found, method)
        if _first_difference(subjects, trial) is None:
            return None
        with single_thread():  # is it a difference, or a sum in another order?
            difference = _first_difference(subjects, trial)
            if difference is None:
                return None
            guilty = _guilty(subjects, captured, trial)
    finally:
        moved = kept.set_back()
        if moved:  # and so nothing was compared with what it should have been
            raise VerificationError(
                f"{type(model).__name__}: its backward pass writes to {moved[0]}; if it is meant "
                "to, use verify=False"
            )
    if guilty:
        return Faults(islands=frozenset(guilty))
    if difference.site is not None:
        return Faults(sites={difference.site: "gets another gradient inside its own forward"})
    raise VerificationError(
        f"{type(model).__name__}: the {difference.what} of the converted model differs from the "
        f"original's; {_advice(observed, found)}"
    )


def _advice(observed: Observation, found: Discovery) -> str:
    """What may be the reason of a difference, and what to do."""
    read = [
        site.name
        for site in found.sites
        if site.name in observed.handed and found.users[site.name] - {owner(site.name)}
    ]
    if not read:
        return (
            "a weight that the forward reads by another way than its attribute (a list that holds "
            "it, _parameters) has to be excluded; if the model is not deterministic, use "
            "verify=False"
        )
    return (
        f"while it runs, it computes with {few(read)}, got by parameters() or a state dict, which "
        "give latent weights and not those that multiply: read the attribute (layer.weight), do "
        "that outside of the forward, or exclude these weights"
    )


def _require_numbers(model: nn.Module, found: Discovery) -> None:
    """NaN has no magnitude to prune by, and no output of it can be compared.

    Raises:
        VerificationError: With the name of the first weight.
    """
    for site in found.sites:
        for name in site.parameters:
            if bool(model.get_parameter(name).isnan().any()):
                raise VerificationError(
                    f"weights have NaN: {name}; load or initialise them before the conversion"
                )


def _first_difference(subjects: Sequence[Subject], trial: dict[str, Tensor]) -> Difference | None:
    """What differs first in any of the examples, or ``None``."""
    for subject in subjects:
        difference = differs(subject, trial)
        if difference is not None:
            return difference
    return None


def _subjects(
    model: nn.Module,
    examples: Sequence[Example],
    source: Mapping[str, Tensor],
    observed: Observation,
    forwards: Sequence[SparseForward],
) -> list[Subject]:
    # What steps an optimizer in a hook writes to whatever it likes.
    moving = list(source) if has_backward_hooks(model) else observed.written
    written = {name: source[name] for name in moving}
    return [
        Subject(
            model,
            example,
            forwards,
            {training: observed.left[TrialRun(number, training)] for training in (True, False)},
            written,
        )
        for number, example in enumerate(examples)
    ]


def _trial(model: nn.Module, found: Discovery, method: Method) -> dict[str, Tensor]:
    """Thresholds with which about half of each site is pruned, by full name."""
    trial = {}
    weights = {bound.site.name: bound.weight() for bound in bound_sites(model, run_of(model))}
    with torch.no_grad():
        for site in found.sites:
            threshold = method.trial(site, weights[site.name])
            for home in homes(site):
                path, _, parameter = home.rpartition(".")
                name = state_name(parameter, "threshold")
                trial[f"{path}.{name}" if path else name] = threshold
    return trial


def _guilty(
    subjects: Sequence[Subject], islands: Sequence[SparseForward], trial: dict[str, Tensor]
) -> set[str]:
    """Islands whose graphs, alone, make the model differ; all of the outermost if none does.

    Empty if the model differs without any graph.
    """
    graphs = {forward.name: forward.variants for forward in islands}

    def differs_with(*names: str) -> bool:
        for forward in islands:
            forward.variants = graphs[forward.name] if forward.name in names else []
        return bool(_first_difference(subjects, trial))

    try:
        if not graphs or differs_with():
            return set()
        guilty = {name for name in graphs if differs_with(name)} if len(graphs) > 1 else set(graphs)
    finally:
        for forward in islands:
            forward.variants = graphs[forward.name]
    return guilty or _without_children(set(graphs))


def _without_children(names: set[str]) -> set[str]:
    return {n for n in names if not any(n != other and is_below(n, other) for other in names)}
