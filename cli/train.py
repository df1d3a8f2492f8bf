"""``st3fx train``: train a model while its sparsity rises."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from st3fx.cli.completion import SETTINGS, Spec, Text
from st3fx.cli.contradictions import Apart, Needs, rules
from st3fx.cli.options import (
    SectionedCommand,
    force_option,
    given,
    json_option,
    settings_options,
    trust_options,
    with_budgets,
)
from st3fx.cli.output import say, show, stdout_for
from st3fx.cli.terminal import INTERRUPTED

if TYPE_CHECKING:
    from st3fx.commands.train import Code
    from st3fx.training.report import TrainResult
    from st3fx.training.settings import Settings


@click.command(cls=SectionedCommand)
@click.argument("spec", metavar="[SPEC]", required=False, type=Spec())
@settings_options
@click.option("--target-macs", type=float, metavar="X",
              help="Share of the multiplications that training prunes: a --sparsity with "
              "--budget macs.")  # fmt: skip
@click.option("--amp", is_flag=True, help="Mixed precision: short for --precision bf16.")
@click.option(
    "--config",
    type=SETTINGS,
    metavar="FILE",
    help="Settings from a TOML file; options go over them.",
)
@click.option("--resume", type=Text(empty=True), is_flag=False, flag_value="", metavar="[DIR]",
              help="Go on with the run in DIR, by default in --output-dir, from its last "
              "checkpoint, or from the checkpoint that is named.")  # fmt: skip
@click.option("--auto-resume", is_flag=True,
              help="Go on with the run in --output-dir if one is there, else begin: the line that "
              "torchrun --max-restarts repeats when a process has died.")  # fmt: skip
@click.option("--accept-changes", is_flag=True,
              help="With --resume, go on though the model's source, the data, the log or the "
              "settings were changed since the checkpoint was written.")  # fmt: skip
@click.option("--test-only", is_flag=True, help="Evaluate, and write nothing.")
@trust_options
@force_option("a run that is already there")
@json_option
@rules(
    Apart("resume", "force", "a run goes on, or it is replaced"),
    Apart("resume", "config", "a run that goes on has its settings already"),
    Apart("auto_resume", "resume", "one of them goes on only if there is a run"),
    Apart("auto_resume", "force", "a run goes on, or it is replaced"),
    Apart("auto_resume", "test_only", "an evaluation begins nothing"),
    Apart("test_only", "force", "an evaluation replaces nothing"),
    Apart("target_macs", "sparsity", "both are the sparsity to reach"),
    Apart("target_macs", "budget", "it is a --sparsity with --budget macs"),
    Needs("accept_changes", "resume"),
    Apart("amp", "precision", "--amp is --precision bf16"),
)
def train(
    *,
    spec: str | None,
    target_macs: float | None,
    amp: bool,
    config: str | None,
    resume: str | None,
    auto_resume: bool,
    test_only: bool,
    trust: bool,
    model: str | None,
    force: bool,
    accept_changes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the model SPEC while its sparsity rises, and fold it.

    SPEC is a model as for st3fx convert, a reference model (st3fx:resnet20), or a bundle. Library
    models are built with as many outputs as the data has classes, and torchvision's get grey images
    as colour. Without options it trains on fashion-mnist-mini, which comes with st3fx.

    The run is a folder: settings.toml, metrics.jsonl, tensorboard/, checkpoints/, curves.png, the
    trained bundle model.st3fx, and folded.safetensors with the weights of the model's own class.
    Ctrl-C saves; --resume goes on as if nothing had happened.

    \b
    Examples
      st3fx train st3fx:resnet20
      st3fx train model.py --data cifar10 --data-path ~/data --recipe st3-cifar
      st3fx train torchvision:resnet50 --recipe st3-imagenet --data-path ~/imagenet --amp
      st3fx train --resume runs/resnet20
      torchrun --nproc-per-node 4 -m st3fx train model.st3fx --config run.toml
      torchrun --nproc-per-node 4 --max-restarts 3 -m st3fx train model.py --auto-resume
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    flags = given(options)
    if spec is not None:
        flags["spec"] = spec
    if target_macs is not None:
        flags |= {"sparsity": target_macs, "budget": "macs"}
    if "sparsity_of" in flags:
        flags |= given(with_budgets({"sparsity": None} | flags))
    if amp:
        flags.setdefault("precision", "bf16")
    if auto_resume and (begun := _begun(flags, config)) is not None:
        config, resume = None, begun
    settings, checkpoint = _settings(
        flags, config, resume, test_only=test_only, accepted=accept_changes
    )
    with stdout_for(as_json=as_json):
        result = _run(
            settings, checkpoint, _code(settings, flags, config, resume, trust, model),
            test_only=test_only, force=force or resume is not None,
            accept_changes=accept_changes, as_json=as_json,
        )  # fmt: skip
    if _is_main_process():
        _show(result, as_json)


def _settings(
    flags: dict[str, Any],
    config: str | None,
    resume: str | None,
    *,
    test_only: bool,
    accepted: bool,
) -> tuple[Settings, Path | None]:
    """The settings of the run, and the checkpoint to go on from: none yet means from the start."""
    from st3fx.errors import TrainError
    from st3fx.training.folder import find_run
    from st3fx.training.recipes import lasting, resolve
    from st3fx.training.recipes import resume as resume_settings

    if resume is None:
        settings = resolve(flags, config)
        if not settings.spec:
            raise TrainError("no model: give a SPEC, e.g. st3fx:resnet20 or model.py")
        _require_use(flags, settings)
        folder = settings.output_dir or _default_folder(settings.spec)
        return lasting(dataclasses.replace(settings, output_dir=folder)), None
    where = (
        resume or flags.get("output_dir") or ("spec" in flags and _default_folder(flags["spec"]))
    )
    if not where:
        raise TrainError("--resume needs the folder of the run: --resume DIR")
    folder_of_run, checkpoint = find_run(Path(where))
    if test_only and checkpoint is None:
        again = f"st3fx train --resume {shlex.quote(str(folder_of_run.path))}"
        raise TrainError(f"{folder_of_run.path} has no checkpoint yet to evaluate: {again} goes on")
    settings = resume_settings(folder_of_run, flags, accepted=accepted)
    return dataclasses.replace(settings, output_dir=str(folder_of_run.path)), checkpoint


def _begun(flags: dict[str, Any], config: str | None) -> str | None:
    """The folder of the run that a command begins, if it has begun already."""
    from st3fx.training.folder import RunFolder
    from st3fx.training.recipes import resolve

    settings = resolve(flags, config)
    folder = settings.output_dir or (settings.spec and _default_folder(settings.spec))
    return folder if folder and RunFolder(Path(folder)).settings.is_file() else None


def _code(
    settings: Settings,
    flags: dict[str, Any],
    config: str | None,
    resume: str | None,
    trust: bool,
    model: str | None,
) -> Code:
    """On whose word code runs: that of the command line, of the recipe, or of the run."""
    from st3fx.commands.train import Code
    from st3fx.loading.trust import USER, Permit

    named = Path(config).parent if config is not None else Path(str(settings.output_dir))
    written = Permit(named.resolve(), trust, None if config is None else Path(config))
    is_written = config is not None or resume is not None
    spec, data = (USER if name in flags or not is_written else written for name in ("spec", "data"))
    return Code(spec, data, trust, model)


_MEANT_FOR: dict[str, tuple[str, Any]] = {
    "milestones": ("sched", "multistep"),
    "lr_gamma": ("sched", "multistep"),
    "min_lr": ("sched", "cosine"),
    "momentum": ("opt", "sgd"),
    "model_ema_decay": ("model_ema", True),
}
"""Option -> the setting that it belongs to; a recipe may have it, too."""


def _require_use(flags: dict[str, Any], settings: Settings) -> None:
    """Refuse options that would change nothing."""
    from st3fx.errors import TrainError

    for name, (other, value) in _MEANT_FOR.items():
        if name in flags and getattr(settings, other) != value:
            text = " ".join([f"--{other.replace('_', '-')}", *([] if value is True else [value])])
            flag = f"--{name.replace('_', '-')}"
            raise TrainError(f"{flag} is for {text}: leave it out, or give that too")


def _default_folder(spec: str) -> str:
    from st3fx.loading.spec import parse_spec

    name = Path(spec).stem if Path(spec).is_dir() else parse_spec(spec).name
    return str(Path("runs") / name)


def _run(
    settings: Settings,
    checkpoint: Path | None,
    code: Code,
    *,
    test_only: bool,
    force: bool,
    accept_changes: bool,
    as_json: bool,
) -> TrainResult:
    from st3fx.cli.views.display import make_report
    from st3fx.commands.train import evaluate_spec, train_spec
    from st3fx.training.interrupt import Interrupted

    report = make_report(sys.stderr if as_json else sys.stdout)
    try:
        with report:
            if test_only:
                return evaluate_spec(settings, checkpoint=checkpoint, report=report, code=code)
            return train_spec(
                settings,
                checkpoint=checkpoint,
                force=force,
                report=report,
                code=code,
                accept_changes=accept_changes,
            )
    except Interrupted as stop:
        if _is_main_process():
            command = f"st3fx train --resume {shlex.quote(str(settings.output_dir))}"
            say(f"stopped by {stop}, and saved: go on with {command}", err=True)
        sys.exit(INTERRUPTED)


def _show(result: TrainResult, as_json: bool) -> None:
    from st3fx.cli.views.outcome import print_summary

    show(result, print_summary, as_json=as_json)


def _is_main_process() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"
