"""Child processes end when their parent is killed, whatever they are doing."""

from __future__ import annotations

import pytest

from tests.killed import ends, family, has_ended

CHILD = """
import sys
from st3fx.processes import end_with_parent, watch_parent
{call}(int(sys.argv[1]))
print("working", flush=True)
while True:
    pass
"""

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())],
                         stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("call", ["end_with_parent", "watch_parent"])
def test_a_busy_child_ends_with_its_parent(call: str) -> None:
    with family("-c", PARENT, CHILD.format(call=call)) as (parent, child):
        assert not ends(child, seconds=1.5)
        assert parent.poll() is None
        parent.kill()
        assert ends(child)


def test_a_parent_that_was_gone_before() -> None:
    code = """
from st3fx.processes import watch_parent
print(1, flush=True)
watch_parent(1_000_000_000)
"""
    with family("-c", code) as (process, _):
        assert process.wait(60) == 1


def test_what_has_ended() -> None:
    with family("-c", "import os; print(os.getpid(), flush=True); input()") as (process, child):
        assert not has_ended(child)
        process.kill()
        assert ends(child)  # nobody has taken note of it yet
        process.wait()
        assert has_ended(child)
