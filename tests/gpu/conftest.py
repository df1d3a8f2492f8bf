"""The kernels run in Triton's interpreter: the same code, on the CPU."""

from __future__ import annotations

import os

# Read when a kernel is defined, so before st3fx.gpu's modules are imported.
os.environ["TRITON_INTERPRET"] = "1"
