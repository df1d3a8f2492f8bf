"""Child processes answer, fail and die in one line, and end when their parent is killed."""

from __future__ import annotations

import signal

import pytest

from st3fx.processes import Child, ChildDiedError, ChildError
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


@pytest.mark.slow
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


def test_answers_do_not_mix_with_what_is_printed_or_read() -> None:
    with Child("tests.child") as child:
        assert child.ask({"speak": [1, "é"]}) == {"said": [1, "é"]}
        assert child.ask({"speak": None}, limit=60.0) == {"said": None}
    assert child._process.returncode == 0


def test_an_error_is_a_line_and_no_end() -> None:
    with Child("tests.child") as child:
        with pytest.raises(ChildError, match=r"^ValueError: broken$") as caught:
            child.ask({"raise": "broken\nin two lines"})
        assert not caught.value.ours
        with pytest.raises(ChildError, match=r"^give another$") as caught:
            child.ask({"refuse": "give another"})
        assert caught.value.ours
        assert child.ask({"speak": 1}) == {"said": 1}


def test_a_death_says_how() -> None:
    for order, code, message in (
        ({"exit": 3}, 3, "its process ended with exit code 3"),
        ({"kill": signal.SIGSEGV}, -signal.SIGSEGV, "its process ended by SIGSEGV: last words"),
        ({"kill": 40}, -40, "its process ended by signal 40: last words"),
    ):
        with Child("tests.child") as child:
            with pytest.raises(ChildDiedError) as caught:
                child.ask(order)
            assert (caught.value.code, str(caught.value)) == (code, message)
            with pytest.raises(ChildDiedError):
                child.ask({"speak": 1})


def test_a_module_that_is_not_there() -> None:
    with Child("tests.no_such_module") as child, pytest.raises(ChildDiedError, match="no_such"):
        child.ask({})


def test_one_that_hangs_is_ended() -> None:
    with Child("tests.child") as child, pytest.raises(ChildDiedError, match="not end within"):
        child.ask({"sleep": 60}, limit=0.5)


def test_after_an_error_of_the_parent_nothing_is_waited_for() -> None:
    with pytest.raises(KeyboardInterrupt), Child("tests.child") as child:
        raise KeyboardInterrupt
    assert child._process.returncode == -signal.SIGKILL
