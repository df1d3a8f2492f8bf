"""A lock that another thread holds at a fork does not keep the child waiting."""

from __future__ import annotations

import os
import select
import threading

from st3fx.process_lock import ProcessLock


def test_one_thread_at_a_time() -> None:
    lock, inside, seen = ProcessLock(), [], []

    def work() -> None:
        with lock:
            inside.append(1)
            seen.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    with lock:
        for thread in threads:
            thread.start()
        assert not seen
    for thread in threads:
        thread.join(10)
    assert seen == [1] * 8


def test_a_child_of_a_fork_has_its_own() -> None:
    lock, held, done = ProcessLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with lock:
            os.write(writer, b"got it")
        os._exit(0)
    answered, _, _ = select.select([reader], [], [], 10)
    os.kill(child, 9)
    os.waitpid(child, 0)
    done.set()
    thread.join()
    assert answered
    os.close(reader)
    os.close(writer)
