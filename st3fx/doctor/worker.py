"""The child process of the doctor: runs probes and tells of each on stdout, as a line of JSON.

A line with ``probe`` alone says that it begins; a second one has what came of it. It ends with its
parent, whose process id is the first argument.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import warnings
from typing import Any, TextIO

from st3fx.doctor.probe import AbsentError
from st3fx.errors import describe
from st3fx.processes import end_with_parent


def outcome(target: str) -> dict[str, Any]:
    """Run the probe ``module:function``: its status, detail, advice and seconds."""
    began = time.perf_counter()
    module, _, function = target.partition(":")
    advice = ""
    try:
        # Looked up by name, so that a module that cannot be imported is a finding too.
        detail = str(getattr(importlib.import_module(module), function)())
        status = "ok"
    except AbsentError as reason:
        status, detail, advice = "absent", str(reason), reason.advice
    except Exception as error:  # noqa: BLE001 (whatever is broken is what is looked for)
        status, detail = "failed", describe(error)
    seconds = round(time.perf_counter() - began, 3)
    return {"status": status, "detail": detail, "advice": advice, "seconds": seconds}


def main() -> None:
    """Run the probes that are named as arguments, after the parent's process id."""
    end_with_parent(int(sys.argv[1]))
    warnings.simplefilter("ignore")
    with _own_stdout() as out:
        for target in sys.argv[2:]:
            print(json.dumps({"probe": target}), file=out, flush=True)
            print(json.dumps({"probe": target, **outcome(target)}), file=out, flush=True)


@contextlib.contextmanager
def _own_stdout() -> Any:
    """Stdout for the protocol alone: what else is printed, by C code too, goes to stderr."""
    sys.stdout.flush()
    out: TextIO
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        yield out


if __name__ == "__main__":
    main()
