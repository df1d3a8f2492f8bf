"""What all tests share: threads, kernels on the CPU, and the same random numbers in any order."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

# Set before torch is imported anywhere. Workers side by side would otherwise start as many threads
# as there are cores each; child processes of the tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before triton is imported anywhere: its interpreter runs st3fx.sparsity.gpu on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# What tests run as a user would must not be trusted by that user's st3fx afterwards.
_STATE = tempfile.TemporaryDirectory(prefix="st3fx-trust-")
os.environ["ST3FX_TRUST"] = f"{_STATE.name}/trust.json"


def pytest_report_header() -> list[str]:
    """Say so where the tests that need a browser are left out."""
    from tests.report.browser import has_browser

    return [] if has_browser() else ["no Chromium: tests/report/test_browser.py is not collected"]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    import torch

    torch.manual_seed(0)
    yield
    # A test that forgets this one would change the results of whatever runs after it.
    torch.set_default_dtype(torch.float32)
    if "torch._dynamo" in sys.modules:  # a compiler gives up on code that it has compiled often
        torch._dynamo.reset()
