"""``st3fx completion``: commands, options, models and files on the Tab key."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

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
    click.echo(kind(main, {}, PROGRAM, VARIABLE).source(), nl=False)
