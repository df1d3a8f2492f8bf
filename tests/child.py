"""A child process that does what it is told, for the tests of the protocol."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from st3fx.errors import BenchError
from st3fx.processes import serve


def obey(order: dict[str, Any]) -> dict[str, Any]:
    [(verb, what)] = order.items()
    if verb == "raise":
        raise ValueError(what)
    if verb == "refuse":
        raise BenchError(what)
    if verb == "exit":
        os._exit(what)
    if verb == "kill":
        os.write(2, b"a warning\nlast words\n")
        os.kill(os.getpid(), what)
    if verb == "sleep":
        time.sleep(what)
    os.write(1, b"noise from C code\n")
    sys.stdout.write("noise from Python\n")
    assert sys.stdin.read() == ""
    return {"said": what}


if __name__ == "__main__":
    serve(obey)
