"""The program: ``python -m st3fx``, and ``st3fx`` where it is installed."""

from __future__ import annotations

import os
import signal
import sys


def run() -> None:
    """Run the command that the arguments name.

    Nothing is imported before Ctrl-C is answered, and before there are three streams: a file that
    was opened as number 1 would get what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Where a shell starts it in the background (&), Ctrl-C is not meant for it.
    listens = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    if listens:
        # What answers it has to be imported itself: until then it ends the process as any.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from st3fx.cli import main
    from st3fx.cli.terminal import finish, on_interrupt, take_streams

    if listens:
        signal.signal(signal.SIGINT, on_interrupt)
    take_streams()
    try:
        main(prog_name="st3fx")
    except SystemExit as end:
        sys.exit(finish(end.code))


if __name__ == "__main__":
    run()
