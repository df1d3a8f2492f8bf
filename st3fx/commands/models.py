"""From a bundle or a SPEC to a folded model, for the verbs that write it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from st3fx.api import convert, fold
from st3fx.commands.convert import code_of, restored, stood_in
from st3fx.errors import (
    EmptyLayerWarning,
    ExportError,
    SpecError,
    St3fxError,
    TargetWarning,
    quoted,
)
from st3fx.export.export_result import Size
from st3fx.export.weights import size_of_tensors
from st3fx.files.bundle import Bundle, read_bundle
from st3fx.files.shards import INDEX, find_checkpoint
from st3fx.loading.input_spec import parse_inputs
from st3fx.loading.spec import LoadedSpec, load_spec, parse_spec
from st3fx.loading.weights import load_weights, require_file
from st3fx.methods import from_dict as method_from_dict
from st3fx.methods.base import LearnedMethod, check_sparsity
from st3fx.methods.st3 import ST3
from st3fx.modules.marks import is_state, state_name
from st3fx.modules.unloaded import on_meta
from st3fx.modules.unwrap import make_permanent
from st3fx.passes.convert.stand_in import can_stand_in
from st3fx.plan.names import owner
from st3fx.sparsifier.run import run_of
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training.folder import RunFolder

_FEW = 1e-3
"""Up to this share zeros are those of random weights: a ResNet-50 has four in 25 million."""


@dataclass(frozen=True)
class Request:
    """Which model, and how sparse.

    Attributes:
        spec: A bundle, or a SPEC.
        weights: A weight file for a SPEC.
        inputs: ``SHAPE[:dtype]`` texts; empty: those of the bundle or of ``example_inputs()``.
        seed: For random weights and inputs.
        sparsity: Prune to it now; ``None``: the model is sparse already.
        allow_dense: Take a model without sparsity too.
        trust: Run the code that a bundle or a run names.
        model: A SPEC to build the model of a bundle from, instead of the one that it names.
    """

    spec: str
    weights: str | None = None
    inputs: tuple[str, ...] = ()
    seed: int = 0
    sparsity: float | None = None
    allow_dense: bool = False
    trust: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the model is.

        Raises:
            MethodError: For a sparsity outside [0, 1).
            SpecError: Where there is no weight file.
        """
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        if self.weights is not None:
            require_file(self.weights)

    @property
    def name(self) -> str:
        """A short name for what is written of it."""
        return Path(self.spec).resolve().stem if self.is_bundle else parse_spec(self.spec).name

    @property
    def in_shards(self) -> bool:
        """Whether the weights of a bundle without any are in shards, and folded there."""
        if self.weights is None or not self.is_bundle:
            return False
        checkpoint = find_checkpoint(self.weights)
        return checkpoint is not None and checkpoint.name.endswith(INDEX)

    @property
    def is_bundle(self) -> bool:
        """Whether ``spec`` is a folder: then it can be nothing else."""
        return Path(self.spec).is_dir()


def of_run(request: Request, error: type[St3fxError]) -> tuple[Request, RunFolder | None]:
    """The trained model where the folder of a run is named; and that run.

    Args:
        request: ``spec`` may be the folder of a run.
        error: Raised.

    Raises:
        St3fxError: Of the class ``error``, when a run has no model yet.
    """
    run = RunFolder(Path(request.spec))
    if not run.settings.is_file():
        return request, None
    if not run.bundle.is_dir():
        raise error(
            f"{run.path} has no {run.bundle.name} yet: its training has not ended; go on with "
            f"it by st3fx train --resume {quoted(run.path)}"
        )
    return dataclasses.replace(request, spec=str(run.bundle)), run


@dataclass(frozen=True)
class Folded:
    """A folded model.

    Attributes:
        model: Plain, of the user's class; without forward where weights alone were asked for.
        weights: Names of the parameters that can be sparse.
        before: Size of the weights before.
        example: One call of the model; ``None`` where none is known.
        granularity: What was pruned together.
        parameters: Scalars in all parameters, where the model does not tell.
    """

    model: nn.Module
    weights: tuple[str, ...]
    before: Size
    example: Any
    granularity: str = "unstructured"
    parameters: int | None = None

    @property
    def numel(self) -> int:
        """Scalars in all of its parameters."""
        if self.parameters is not None:
            return self.parameters
        return sum(parameter.numel() for parameter in self.model.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Those parameters."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return {name: parameters[name] for name in self.weights if name in parameters}


def folded(
    request: Request,
    progress: Callable[[str], None],
    *,
    with_example: bool,
    weights_only: bool = False,
    shapes: bool = False,
) -> Folded:
    """Load a model, prune it where that is asked for, and fold it.

    Args:
        request: Which.
        progress: Called with the name of each stage as it begins.
        with_example: Whether an example is looked for where folding needs none.
        weights_only: Whether a model that cannot run will do: that of a bundle needs no code then,
            unless it computes its weights.
        shapes: Whether a model without values will do, where none are given.

    Raises:
        ExportError: When the model is dense and that was not allowed.
        St3fxError: As ``load_bundle``, ``load_spec`` and ``convert``.
    """
    progress("load")
    with warnings.catch_warnings():
        # The results name empty layers themselves.
        warnings.simplefilter("ignore", EmptyLayerWarning)
        if request.is_bundle:
            return _from_bundle(
                request, progress, with_example=with_example, weights_only=weights_only,
                shapes=shapes,
            )  # fmt: skip
        return _from_spec(request, progress, with_example=with_example, shapes=shapes)


def _from_bundle(
    request: Request,
    progress: Callable[[str], None],
    *,
    with_example: bool,
    weights_only: bool,
    shapes: bool,
) -> Folded:
    bundle = read_bundle(request.spec)
    if request.weights is not None:
        if bundle.manifest.absent:
            raise ExportError(
                f"{request.spec} has no weights, and those of {request.weights} are only folded: "
                f"st3fx fold, or st3fx convert {quoted(bundle.manifest.recipe.spec)} --weights"
            )
        raise ExportError(f"{request.spec} is a bundle and has its weights: leave --weights out")
    if shapes and bundle.manifest.absent and request.sparsity is None:
        return _without_values(bundle, request, progress)
    stands_in = weights_only and can_stand_in(bundle.manifest.plan)
    if stands_in:
        model = stood_in(bundle)
    else:
        model = restored(bundle, trust=request.trust, model=request.model).model
    example = None
    if with_example:
        example = _given(request) or bundle_example(
            bundle, trust=request.trust, model=request.model
        )
    sparsifier = Sparsifier(model)
    if request.sparsity is not None:
        sparsifier.set_sparsity(request.sparsity)
    elif not request.allow_dense and (why := _untrained(sparsifier)):
        raise ExportError(
            f"{request.spec} is not trained yet, {why}: train it (st3fx train "
            f"{quoted(request.spec)}), prune it now by --sparsity, or take it as it is by "
            "--allow-dense"
        )
    found = _fold(model, "weights of the bundle", example, progress)
    if stands_in:
        return dataclasses.replace(found, parameters=_parameters(bundle))
    return found


def _without_values(bundle: Bundle, request: Request, progress: Callable[[str], None]) -> Folded:
    """The plain model of a bundle without weights, on the meta device."""
    model = restored(bundle, trust=request.trust, model=request.model, values=False).model
    example = _given(request) or bundle_example(bundle, trust=request.trust, model=request.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TargetWarning)
        return _fold(model, "weights of the bundle", example, progress)


def _untrained(sparsifier: Sparsifier) -> str:
    """What shows that a converted model was not trained; nothing if it may have been."""
    run = run_of(sparsifier.model)
    if sparsifier.sparsity <= (0 if run.steps else _FEW):
        return "its sparsity is 0"
    begins = run.moving is not None and not (run.steps or run.held or run.frozen or run.floor)
    return "its masks are random" if begins else ""


def _parameters(bundle: Bundle) -> int:
    """Scalars in the parameters of a bundle's model when it is folded.

    Learned thresholds go, and projections of tied embeddings get a parameter of their own.
    """
    plan, state = bundle.manifest.plan, bundle.state_dict
    learned = isinstance(method_from_dict(bundle.manifest.recipe.method), LearnedMethod)
    thresholds = (
        state[f"{owner(site.name)}.{state_name(site.name.rpartition('.')[2], 'threshold')}"
              .removeprefix(".")].numel()
        for site in plan.sites
    )  # fmt: skip
    untied = sum(site.numel for site in plan.sites if site.tied)
    return plan.total_parameters + untied - (sum(thresholds) if learned else 0)


def _from_spec(
    request: Request, progress: Callable[[str], None], *, with_example: bool, shapes: bool
) -> Folded:
    given = _given(request)
    wanted = with_example or request.sparsity is not None
    loaded = load_spec(request.spec, seed=request.seed, with_inputs=wanted and given is None)
    model, example = loaded.model, given if given is not None else loaded.example_inputs
    unloaded = on_meta(model)
    if unloaded and request.weights is None and not (shapes and request.sparsity is None):
        raise SpecError(
            f"{request.spec} builds its model on the meta device, without values: give --weights"
        )
    late = unloaded and request.sparsity is not None  # shapes are all that converting needs
    if request.weights is not None and not late:
        load_weights(model, request.weights)
    make_permanent(model)  # masks of torch.nn.utils.prune
    if request.sparsity is not None:
        if example is None:
            raise no_example(request.spec, loaded)
        method = ST3(sparsity=request.sparsity)
        model, sparsifier = convert(
            model, example, method, verify=False, inplace=True, progress=progress
        )
        if late and request.weights is not None:
            progress("weights")
            load_weights(model, request.weights)
        sparsifier.set_sparsity(request.sparsity)
        return _fold(model, "weights before", example, progress)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    if on_meta(model):
        return Folded(model, tuple(weights), _size("weights", model), example)
    zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights.values())
    whole = sum(weight.numel() for weight in weights.values())
    if not request.allow_dense and zeros <= _FEW * whole:
        found = f"only {zeros:,} of {whole:,} weights that are" if zeros else "no weight that is"
        raise ExportError(
            f"{request.spec} has {found} zero: prune it now by --sparsity, load folded "
            "weights by --weights, or take it as it is by --allow-dense"
        )
    return Folded(model, tuple(weights), _size("weights before", model), example)


def no_example(spec: str, loaded: LoadedSpec | None = None) -> SpecError:
    """The error where a model has to run and no inputs are known."""
    beside = f", or define example_inputs() in {spec}" if loaded and loaded.source else ""
    return SpecError(
        f"no example inputs for {spec}: give --input SHAPE, e.g. --input 1x3x224x224{beside}"
    )


def _fold(model: nn.Module, name: str, example: Any, progress: Callable[[str], None]) -> Folded:
    before = _size(name, model)
    plan = Sparsifier(model).plan
    names = tuple(site.name for site in plan.sites)
    progress("fold")
    return Folded(fold(model, inplace=True), names, before, example, plan.granularity)


def _size(name: str, model: nn.Module) -> Size:
    state = model.state_dict()
    if on_meta(model):  # nothing to compress
        raw = sum(tensor.nbytes for tensor in state.values())
        return Size(name, raw, raw)
    own = {key: value for key, value in state.items() if not is_state(key)}
    return size_of_tensors(name, own)


def _given(request: Request) -> Any:
    return parse_inputs(request.inputs, seed=request.seed) if request.inputs else None


def bundle_example(bundle: Bundle, *, trust: bool = False, model: str | None = None) -> Any:
    """The inputs that a bundle was made with; the rest is as for ``load_bundle``."""
    recipe = bundle.manifest.recipe
    if recipe.inputs is not None:
        return parse_inputs(recipe.inputs, seed=recipe.seed)
    recipe, permit = code_of(bundle, trust=trust, model=model)
    return load_spec(
        recipe.spec,
        seed=recipe.seed,
        num_classes=recipe.num_classes,
        in_channels=recipe.in_channels,
        image_size=recipe.image_size,
        permit=permit,
    ).example_inputs
