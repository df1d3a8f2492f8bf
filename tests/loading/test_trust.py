from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from st3fx.errors import TrustError
from st3fx.loading import trust
from st3fx.loading.trust import Entry, Permit, location, remember


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The memory of a user who has run nothing."""
    path = tmp_path / "state" / "trust.json"
    monkeypatch.setenv("ST3FX_TRUST", str(path))
    monkeypatch.setattr(trust, "_ran", {})
    return path


def ran(name: str, folder: Path | None = None) -> None:
    """Run a file, and remember that."""
    Permit(folder, trust=True).check(Path(name), b"x = 1", "model:build")
    remember()


def may(name: str, folder: str, source: bytes = b"x = 1", use: str = "model:build") -> bool:
    try:
        Permit(Path(folder)).check(Path(name), source, use)
    except TrustError:
        return False
    return True


def test_what_is_the_same_may_run_again() -> None:
    ran("/m/net.py")
    assert may("/m/net.py", "/data/b")
    assert not may("/m/net.py", "/data/b", b"x = 2")
    assert not may("/n/net.py", "/data/b")
    for use in ("model:", "model:wipe", "data:build"):
        assert not may("/m/net.py", "/data/b", use=use)
    assert may("/m/net.py", "/data/b", use="import")  # which calls nothing in it


def test_trust_is_of_a_folder_and_what_lies_in_it() -> None:
    ran("/m/net.py", Path("/data/b"))
    assert may("/m/net.py", "/data/b")
    assert may("/m/net.py", "/data/b/model.st3fx")
    assert not may("/m/net.py", "/data")
    assert not may("/m/net.py", "/data/b2")
    remember(Path("/runs/new"))
    assert may("/m/net.py", "/runs/new")


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert location() == tmp_path / "state" / "trust.json"
    monkeypatch.setenv("ST3FX_TRUST", "here.json")  # in whatever folder is opened
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert location() == tmp_path / "st3fx" / "trust.json"
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert location() == tmp_path / ".local" / "state" / "st3fx" / "trust.json"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"format": "st3fx-trust 2", "files": []}',
     b'{"format": "st3fx-trust 1", "files": [1]}', b'{"format": "st3fx-trust 1", "files": [{}]}',
     b'{"format": "st3fx-trust 1", "files": [{"path": [], "sha256": "", "use": ""}]}',
     b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_memory_trusts_nothing_and_is_begun_anew(state: Path, content: bytes) -> None:
    ran("/m/net.py")
    state.write_bytes(content)
    assert not may("/m/net.py", "/data/b")
    ran("/m/net.py")
    assert may("/m/net.py", "/data/b")


def test_what_others_could_write_is_not_believed(state: Path) -> None:
    ran("/m/net.py")
    assert state.stat().st_mode & 0o777 == 0o600
    for mode in (0o620, 0o602):
        state.chmod(mode)
        assert not may("/m/net.py", "/data/b")


def test_a_memory_that_cannot_be_kept_is_no_error(state: Path) -> None:
    state.parent.write_text("a file")
    ran("/m/net.py")
    assert not may("/m/net.py", "/data/b")
    state.parent.unlink()
    state.mkdir(parents=True)
    ran("/m/net.py")
    assert not may("/m/net.py", "/data/b")


def test_many_write_at_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_LIMIT", 30)
    threads = [threading.Thread(target=ran, args=(f"/m/{index}.py",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(may(f"/m/{index}.py", "/data/b") for index in range(8))
    trust._ran.clear()
    for index in range(40):
        trust._ran[Entry(f"/n/{index}.py", "", "import")] = None
    remember()
    assert len(json.loads(state.read_text())["files"]) == 30
    assert {path.name for path in state.parent.iterdir()} == {"trust.json", "trust.lock"}
