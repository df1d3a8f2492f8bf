"""The child process of the doctor: its orders are the targets of probes, which it runs in turn."""

from __future__ import annotations

import importlib
import time
import warnings
from typing import Any

from st3fx.doctor.probe import AbsentError
from st3fx.errors import describe
from st3fx.processes import serve


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


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(outcome)
