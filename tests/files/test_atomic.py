"""What is half-written is known by name, content and lock, and nothing else is ever removed."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st3fx.errors import ExportError
from st3fx.files import atomic
from st3fx.files.atomic import (
    MARK,
    TEXT,
    check_file,
    move_into_place,
    recover,
    replace_file,
    temporary_neighbour,
    tidy,
)
from st3fx.files.lock import FileLock

CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree")
"""File-system calls, as Python tells of them."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a fork that does something; negative for a signal."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(target: Path) -> None:
    def work() -> None:
        with temporary_neighbour(target) as folder:
            (folder / "half").write_text("half")
            die()

    assert in_child(work) == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "a")
    assert len(names(tmp_path)) == 1
    replace_file(tmp_path / "b", lambda file: file.write(b"b"))
    assert names(tmp_path) == ["b"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with temporary_neighbour(tmp_path / "a") as folder:
        (folder / "half").write_text("half")
        tidy(tmp_path)
        assert in_child(lambda: tidy(tmp_path)) == 1
        assert (folder / "half").read_text() == "half"
    assert names(tmp_path) == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """By name, by text, by a link: all of it."""
    (tmp_path / ".mine.part").mkdir()
    (tmp_path / ".mine.part" / "x").write_text("x")
    (tmp_path / ".file.part").write_text("x")
    (tmp_path / ".old.old").mkdir()
    other = tmp_path / ".marked.part"
    other.mkdir()
    (other / MARK).write_text("my own notes on st3fx")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / MARK).write_bytes(TEXT)
    (tmp_path / ".link.part").symlink_to(outside)
    (tmp_path / ".inner.part").mkdir()
    (tmp_path / ".inner.part" / MARK).symlink_to(outside / MARK)
    before = names(tmp_path)
    tidy(tmp_path)
    assert names(tmp_path) == before
    assert names(outside) == [MARK]
    (other / MARK).write_bytes(TEXT)
    tidy(tmp_path)
    assert names(tmp_path) == [name for name in before if name != ".marked.part"]


def test_killed_between_any_two_renames_all_files_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files that belong together, in the place of two others: the old ones or the new ones."""
    original = Path.replace
    for moved in range(2):
        folder = tmp_path / str(moved)
        folder.mkdir()
        for name in ("model", "model.data"):
            (folder / name).write_text("old")

        def work(folder: Path = folder, moved: int = moved) -> None:
            calls = 0

            def replace(self: Path, target: Path) -> Path:
                nonlocal calls
                calls += 1
                if calls > moved:
                    die()
                return original(self, target)

            monkeypatch.setattr(Path, "replace", replace)
            with temporary_neighbour(folder / "model") as written:
                for name in ("model", "model.data"):
                    (written / name).write_text("new")
                removed = [folder / "model", folder / "model.data"]
                move_into_place(written, ["model.data", "model"], removed)

        assert in_child(work) == -signal.SIGKILL
        assert not (folder / "model").exists()
        recover(folder / "model")
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "model": "new", "model.data": "new",
        }  # fmt: skip


@pytest.mark.parametrize("renames", [1, 2])
def test_killed_while_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """After one rename the old folder comes back, after two the new one stays; notes stay."""
    target = tmp_path / "b"
    target.mkdir()
    (target / "content").write_text("old")
    (target / "notes").write_text("dear")

    def work() -> None:
        original, calls = Path.rename, 0

        def rename(self: Path, other: Path) -> Path:
            nonlocal calls
            done = original(self, other)
            calls += self.name != "journal.new"
            if calls == renames:
                die()
            return done

        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
        monkeypatch.setattr(Path, "rename", rename)
        with temporary_neighbour(target) as folder:
            (folder / "content").write_text("new")
            atomic.put_in_place(folder, target, ["content"])

    assert in_child(work) == -signal.SIGKILL
    assert target.exists() == (renames == 2)
    recover(target)
    tidy(tmp_path)
    assert names(tmp_path) == ["b"]
    assert (target / "content").read_text() == ("old" if renames == 1 else "new")
    assert (target / "notes").read_text() == "dear"


def test_a_journal_reaches_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("dear")
    part = tmp_path / "in" / ".x.part"
    part.mkdir(parents=True)
    (part / MARK).write_bytes(TEXT)
    (part / "journal").write_text(json.dumps({"files": [], "removed": ["../victim"]}))
    tidy(tmp_path / "in")
    assert (tmp_path / "victim").read_text() == "dear"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    (tmp_path / "later").symlink_to("none yet")
    replace_file(tmp_path / "later", lambda file: file.write(b"new"))
    assert (tmp_path / "none yet").read_text() == "new"


def test_nothing_but_a_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match=r"is no file but a folder, device or pipe"):
            replace_file(path, lambda file: file.write(b"new"))
        with pytest.raises(ExportError, match="is a device or a pipe: name the file to write"):
            check_file(path, force=True)
    assert names(tmp_path) == ["pipe"]
    assert Path("/dev/null").is_char_device()


def test_many_writers_of_one_folder(tmp_path: Path) -> None:
    """Each writes its files while the others tidy: none is lost, and nothing is left."""

    def write(number: int) -> None:
        for step in range(30):
            content = f"{number} {step}".encode()
            replace_file(tmp_path / "shared", lambda file, c=content: file.write(c))  # type: ignore[misc]
            replace_file(tmp_path / str(number), lambda file, c=content: file.write(c))  # type: ignore[misc]

    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            try:
                write(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert names(tmp_path) == ["0", "1", "2", "3", "shared"]
    assert (tmp_path / "2").read_text() == "2 29"
    assert (tmp_path / "shared").read_text().endswith(" 29")


def test_a_lock_ends_with_its_process_and_no_fork_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready, child = os.pipe(), os.fork()
    if not child:
        lock = FileLock(path)
        assert lock.take()
        grandchild = os.fork()
        if not grandchild:
            threading.Event().wait(60)
        os.write(ready[1], f"{grandchild}".encode())
        threading.Event().wait(60)
    grandchild = int(os.read(ready[0], 20))
    with FileLock(path) as mine:
        assert not mine.take()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert mine.take()
        with FileLock(path) as again:
            assert not again.take()
    os.kill(grandchild, signal.SIGKILL)
    assert path.exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone gets the lock, knows that it means nothing, and removes nothing of others."""

    def refuse(*args: Any) -> None:
        raise OSError(37, "No locks available")

    killed_while_writing(tmp_path / "a")
    monkeypatch.setattr("fcntl.flock", refuse)
    with FileLock(tmp_path / "lock") as lock:
        assert lock.take()
        assert not lock.is_sure
    replace_file(tmp_path / "b", lambda file: file.write(b"b"))
    assert len(names(tmp_path)) == 3  # what was left, too
    time.sleep(0)


def test_nothing_is_left_where_handles_run_out(tmp_path: Path) -> None:
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()

    def use_up() -> None:
        with temporary_neighbour(tmp_path / "x"):
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))

    try:
        with pytest.raises(OSError, match="Too many open files"):
            use_up()
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(held) > 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_few_handles_are(tmp_path: Path) -> None:
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    whole = 0
    for more in range(9):
        try:
            while (last := os.open(os.devnull, os.O_RDONLY)) < 100:
                held.append(last)
            held.append(last)
            resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + more, limits[1]))
            replace_file(tmp_path / "x", lambda file: file.write(b"x"))
            whole += 1
        except OSError as error:
            assert error.errno == errno.EMFILE  # noqa: PT017
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            while held:
                os.close(held.pop())
        assert names(tmp_path) in ([], ["x"])
    assert 1 < whole < 8


@pytest.mark.parametrize("replaced", [False, True])
def test_ctrl_c_before_any_call_leaves_a_file_or_the_one_before(
    tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "x"

    def stopped_at(number: int) -> None:
        left = number

        def stop(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CALLS and str(tmp_path) in str(arguments[0]):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt

        sys.addaudithook(stop)
        try:
            replace_file(path, lambda file: file.write(b"new"))
        except KeyboardInterrupt:
            os._exit(3)
        os._exit(0)

    number, code = 0, 3
    while code == 3:
        number += 1
        path.unlink(missing_ok=True)
        if replaced:
            path.write_bytes(b"old")
        code = in_child(functools.partial(stopped_at, number))
        found = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert found in ({"x": b"new"}, {"x": b"old"} if replaced else {}), number
    assert code == 0
    assert number > 8
