"""``st3fx convert``: make a model ready for sparse training, and write it as a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from st3fx.cli.completion import FOLDER
from st3fx.cli.contradictions import Apart, rules
from st3fx.cli.options import (
    conversion_options,
    force_option,
    json_option,
    method_options,
    model_options,
    with_budgets,
)
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.plan import print_plan, skipped_lines, total_line
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.files.manifest import Recipe
    from st3fx.plan.explain import Explanation
    from st3fx.plan.sites import SparsityPlan


@dataclass(frozen=True)
class ConvertResult:
    """What the command did.

    Attributes:
        recipe: What was asked for.
        plan: What the conversion does.
        bundle: Where it was written; ``None`` for a dry run.
        has_weights: Whether the model was not on the meta device.
    """

    recipe: Recipe
    plan: SparsityPlan
    bundle: Path | None
    has_weights: bool = True

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            "spec": self.recipe.spec,
            "method": self.recipe.method,
            "bundle": None if self.bundle is None else str(self.bundle),
            "site_parameters": self.plan.numel,
            "total_parameters": self.plan.total_parameters,
            "next": self.next,
            "plan": self.plan.to_dict(),
        }

    @property
    def next(self) -> str | None:
        """The command that trains the bundle, or gives it weights; ``None`` for a dry run."""
        if self.bundle is None:
            return None
        if not self.has_weights:
            return fold_command(self.bundle, self.recipe.method.get("sparsity"))
        return train_command(self.recipe.inputs, self.bundle)

    def show(self) -> None:
        """Print this result as tables, then the summary."""
        print_plan(self.plan, console())
        self.show_summary()

    def show_summary(self) -> None:
        """Print what was converted, what stays dense and why, and what to do next."""
        out = console()
        out.print(reach_line(self.plan), soft_wrap=True)
        skipped = self.plan.skipped
        if skipped:
            count = sum(item.numel for item in skipped)
            out.print(f"{plural(len(skipped), 'weight')} with {count:,} parameters stay dense:")
            for line in skipped_lines(skipped):
                out.print(f"  {line}", soft_wrap=True)
        end = "dry run, nothing was written" if self.bundle is None else f"wrote {self.bundle}"
        out.print(f"{total_line(self.plan)}; {end}", soft_wrap=True)
        if self.next is not None:
            out.print(f"next: {self.next}", soft_wrap=True)


def train_command(inputs: Sequence[str] | None, bundle: Path) -> str:
    """What trains a bundle, with data of the kind that its example is of, as far as that shows."""
    sizes = inputs[0].partition(":")[0].split("x")[1:] if inputs and len(inputs) == 1 else []
    data = "--data loaders.py:make_loaders"
    if len(sizes) == 3 and sizes[0] == "1" and sizes[1] == "28":
        data = ""
    elif len(sizes) == 3 and sizes[0] == "3":
        data = f"--data {'cifar10' if sizes[1] == '32' else 'imagefolder'} --data-path DIR"
    return f"st3fx train {shlex.quote(str(bundle))} {data}".rstrip()


def fold_command(bundle: Path, sparsity: float | None) -> str:
    """What folds weights in shards by a bundle without any; a trained sparsity is in the shards."""
    end = "" if sparsity is None else f" --sparsity {sparsity:g}"
    return f"st3fx fold {shlex.quote(str(bundle))} --weights model.safetensors.index.json{end}"


def reach_line(plan: SparsityPlan) -> str:
    """How much of what could be sparse is, and on how many conditions graphs run."""
    share = plan.numel / plan.prunable if plan.prunable else 0.0
    guards = len({guard for island in plan.islands for guard in island.guards})
    noun = "guard" if guards == 1 else "guards"
    conditions = f"; {guards:,} {noun} on sizes and settings" if guards else ""
    reached = f"{plan.numel:,} of {plan.prunable:,} prunable parameters reached ({share:.1%})"
    beside = sum(item.numel for item in plan.skipped) - (plan.prunable - plan.numel)
    apart = f"; {beside:,} skipped ones are in no product, or vectors" if beside else ""
    return f"{reached}{apart}{conditions}; --explain NAME says why"


@dataclass(frozen=True)
class ExplainResult:
    """Why one weight or module is what it is.

    Attributes:
        explanation: In words.
    """

    explanation: Explanation

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return self.explanation.to_dict()

    def show(self) -> None:
        """Print this result, a line for each fact."""
        out = console()
        out.print(f"{self.explanation.name}: {self.explanation.verdict}", soft_wrap=True)
        width = max((len(what) for what, _ in self.explanation.facts), default=0)
        above = ""
        for what, words in self.explanation.facts:
            out.print(f"  {'' if what == above else what:{width}}  {words}", soft_wrap=True)
            above = what


@click.command()
@model_options
@click.option(
    "-o", "--output", type=FOLDER, metavar="DIR", help="The bundle.  [default: NAME.st3fx]"
)
@method_options
@conversion_options
@click.option("--no-verify", is_flag=True, help="Do not compare with the original model.")
@force_option("a bundle that is already there")
@click.option("--dry-run", is_flag=True, help="Convert and print, but write nothing.")
@click.option(
    "--explain",
    "explained",
    metavar="NAME",
    help="Say why this weight or module is sparse, dense, a graph or none; write nothing.",
)
@click.option("-q", "--quiet", is_flag=True,
              help="Show no progress, and of the result the summary alone.")  # fmt: skip
@json_option
@rules(
    Apart("quiet", "as_json", "--json prints nothing else anyway"),
    Apart("quiet", "explained", "an explanation is short"),
    Apart("explained", "output", "an explanation writes no bundle"),
    Apart("explained", "force", "an explanation writes no bundle"),
)
def convert(
    *,
    output: str | None,
    weights: str | None,
    no_verify: bool,
    force: bool,
    dry_run: bool,
    explained: str | None,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Make the model SPEC ready for sparse training.

    Finds the weights that feed its convolutions and matrix products, rewrites its graphs to use
    effective weights, and writes a bundle: a folder that the other commands read.

    \b
    SPEC is one of
      model.py                  build_model() in it, or its only model class without arguments
      model.py:factory          that callable in the file
      torchvision:resnet50      a torchvision model, random weights
      timm:convnext_tiny        a timm model, random weights
      package.module:callable   from an importable module

    \b
    Examples
      st3fx convert model.py
      st3fx convert torchvision:resnet50 --input 1x3x224x224 --sparsity 0.95
      st3fx convert model.py:build -o out.st3fx --weights best.safetensors --skip-first
      st3fx convert torchvision:fcos_resnet50_fpn --explain backbone
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    # A model's own file may print: with --json that must not mix with the result.
    with stdout_for(as_json=as_json), Progress(quiet=quiet) as report:
        converted = _convert(
            asked,
            report,
            output=output,
            weights=weights,
            verify=not no_verify,
            force=force,
            dry_run=dry_run or explained is not None,
        )
    if explained is None:
        view = ConvertResult.show_summary if quiet else ConvertResult.show
        show(converted, view, as_json=as_json)
    else:
        show(_explain(converted, explained), ExplainResult.show, as_json=as_json)


def _convert(
    asked: dict[str, Any],
    report: Progress,
    *,
    output: str | None,
    weights: str | None,
    verify: bool,
    force: bool,
    dry_run: bool,
) -> ConvertResult:
    from st3fx.commands.convert import convert_spec, save_bundle
    from st3fx.files.bundle import check_target
    from st3fx.loading.spec import parse_spec
    from st3fx.modules.unloaded import on_meta

    recipe = _recipe(asked)
    target = Path(output or f"{parse_spec(recipe.spec).name}.st3fx")
    if not dry_run:
        # Now rather than after minutes of work.
        check_target(target, force=force)
    converted = convert_spec(recipe, weights=weights, verify=verify, progress=report)
    if dry_run:
        return ConvertResult(converted.recipe, converted.plan, None)
    report("write")
    save_bundle(converted.model, converted.recipe, target, force=force)
    return ConvertResult(
        converted.recipe, converted.plan, target, has_weights=not on_meta(converted.model)
    )


def _explain(result: ConvertResult, name: str) -> ExplainResult:
    from st3fx.plan.explain import explain

    return ExplainResult(explain(result.plan, name))


def _recipe(asked: dict[str, Any]) -> Recipe:
    """The recipe from the options, under the names that they share with it."""
    from st3fx import methods
    from st3fx.errors import MethodError
    from st3fx.files.manifest import Recipe
    from st3fx.methods.targets import parse_targets

    asked |= with_budgets(asked)
    name, sparsity = asked.pop("method"), asked.pop("sparsity")
    given: dict[str, Any] = {"granularity": asked.pop("granularity")}
    given |= methods.own_settings(asked.pop("method_options"))
    texts = asked.pop("sparsity_of")
    if texts:
        targets = parse_targets(texts)
        if isinstance(methods.create(name, **given), methods.LearnedMethod):
            raise MethodError(
                f"{name} learns its thresholds, and has no sparsity_of: leave --sparsity-of out, "
                "or take another --method"
            )
        given["sparsity_of"] = targets
    method = methods.create(name, **({} if sparsity is None else {"sparsity": sparsity}) | given)
    inputs = asked.pop("inputs") or None
    return Recipe(method=methods.to_dict(method), inputs=inputs, **asked)
