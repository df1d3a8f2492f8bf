"""``st3fx completion``: commands, options, models and files on the Tab key.

Importing torchvision or timm takes seconds, and completion must answer while a key is pressed: the
names of models are read from the libraries' sources, and no type of an argument imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from st3fx.cli.output import say

REFERENCE_MODELS = (
    "resnet20", "resnet32", "resnet56", "vgg19_bn", "wide_resnet", "mobilenet_v1", "lenet_300_100",
    "lstm_rows",
)  # fmt: skip
"""Keys of ``st3fx.models.MODELS``, which takes seconds to import; a test holds them equal."""

LIBRARIES = ("st3fx", "torchvision", "timm")

_REGISTERED = re.compile(
    r"""^@register_model(?:\((?:name=)?(?:"(?P<name>\w+)")?\))?\n"""
    r"""(?:[@ )].*\n)*"""  # other decorators, over several lines
    r"""def (?P<function>\w+)""",
    re.MULTILINE,
)


def model_names(library: str) -> list[str]:
    """Names that ``library:NAME`` may have; none if the library is not there."""
    if library == "st3fx":
        return list(REFERENCE_MODELS)
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "models"
    found = set()
    for path in folder.rglob("*.py"):
        for match in _REGISTERED.finditer(path.read_text(encoding="utf-8")):
            found.add(match["name"] or match["function"])
    return sorted(found)


DATASETS = (
    "fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "webdataset",
    "huggingface",
)  # fmt: skip
"""Keys of ``st3fx.data.DATASETS``, which takes seconds to import; a test holds them equal."""


class Text(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click
    """Any text, with words and files that a shell proposes."""

    name = "text"

    def __init__(
        self, words: Sequence[str] = (), suffixes: Sequence[str] = (), *, empty: bool = False
    ) -> None:
        """Propose ``words``, folders, and files that end in ``suffixes``."""
        self._words, self._suffixes, self._empty = tuple(words), tuple(suffixes), empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as it is; an empty one would mean the folder one is in."""
        if value == "" and not self._empty:
            self.fail("it is empty", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Words that begin so, then files and folders."""
        words = [word for word in self._words if word.startswith(incomplete)]
        return [CompletionItem(value) for value in (*words, *files(incomplete, self._suffixes))]


class Spec(Text):
    """A SPEC: ``library:NAME``, a Python file, a bundle, or another file that holds a model."""

    def __init__(self, suffixes: Sequence[str] = (".py", ".onnx")) -> None:
        """Propose files that end in ``suffixes`` too."""
        super().__init__([f"{library}:" for library in LIBRARIES], suffixes)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Names of the library's models, once it is named; before that libraries and files."""
        library, colon, name = incomplete.partition(":")
        if not colon or library not in LIBRARIES:
            return super().shell_complete(ctx, param, incomplete)
        # Both are spellings of one name.
        wanted = name.replace("-", "_") if library == "st3fx" else name
        names = (found for found in model_names(library) if found.startswith(wanted))
        return [CompletionItem(f"{library}:{found}") for found in names]


def files(incomplete: str, suffixes: Sequence[str]) -> Iterator[str]:
    """Folders, with a slash, and files that end in ``suffixes``, as far as they are typed."""
    parent, slash, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(parent + slash or ".").expanduser().iterdir())
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if entry.name.startswith(start) and not hidden:
            if entry.is_dir():
                yield f"{parent}{slash}{entry.name}/"
            elif entry.name.endswith(tuple(suffixes)):
                yield f"{parent}{slash}{entry.name}"


WEIGHTS = Text(
    suffixes=(".safetensors", ".safetensors.index.json", ".st3w", ".pt", ".pth", ".bin", ".ckpt")
)
DATA = Text(DATASETS, (".py",))
SETTINGS = Text(suffixes=(".toml",))
ONNX = Text(suffixes=(".onnx",))
FOLDER = Text()
INSIDE = Text(suffixes=(".onnx", ".safetensors", ".st3w", ".pt", ".pth", ".bin", ".ckpt"))
"""What can be looked into, beside folders."""


PROGRAM = "st3fx"
VARIABLE = "_ST3FX_COMPLETE"
"""Where click looks for what a shell asks; it follows from the program's name."""

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        if [[ $type == 'dir' ]]; then
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            # More is to come after a library's colon and a folder's slash.
            [[ $value == *[:/] ]] && compopt -o nospace
        fi
    done < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class ColonBash(BashComplete):
    """Bash, where words may have colons in them.

    Bash itself breaks a line at colons: ``torchvision:res`` would be three words. So the line is
    taken as it was typed, and of an answer only what comes after the last such character is given
    back, which is what bash puts in the place of what it takes for the word.
    """

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode()
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1].isspace() else ""
        self._typed = incomplete
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Kind and text of an answer, without what bash keeps."""
        breaks = [char for char in ":=" if char in os.environ.get("COMP_BREAKS", "")]
        kept = max((self._typed.rfind(char) + 1 for char in breaks), default=0)
        # Of `--data=cif` click gives back `cifar10` alone.
        whole = str(item.value).startswith(self._typed[:kept])
        return f"{item.type},{str(item.value)[kept if whole else 0 :]}"


add_completion_class(ColonBash)


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, models and files in SHELL.

    It asks st3fx itself, so that what it proposes is always what this version takes: SPECs
    (st3fx:, torchvision: and timm: with the names of their models), methods, recipes, data sets.

    \b
    To have it in every new shell
      bash   echo 'eval "$(st3fx completion bash)"' >> ~/.bashrc
      zsh    echo 'eval "$(st3fx completion zsh)"' >> ~/.zshrc
      fish   st3fx completion fish > ~/.config/fish/completions/st3fx.fish
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    kind = get_completion_class(shell)
    assert kind is not None
    main = context.find_root().command
    say(kind(main, {}, PROGRAM, VARIABLE).source(), end="")
