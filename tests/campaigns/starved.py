"""Commands on a machine that has run out of disk, rights, handles, memory or threads.

Each is run in a fork of this process, which has all libraries loaded, under a limit that the seed
draws. It works, or ends with one line; what was there before is as it was, and without the limit
the same command works.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from st3fx.cli import main
from tests.models import TINY, write

LOADERS = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def make_loaders(batch_size, seed):
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % 5)
        return DataLoader(data, batch_size=8), DataLoader(data, batch_size=24)
"""

LINES = {
    "convert": "convert model.py -o bundle --force",
    "fold": "fold bundle --sparsity 0.5 -o folded.safetensors --force --trust",
    "compact": "fold bundle --sparsity 0.5 -o folded.st3w --force --trust",
    "analyze": "analyze bundle --csv layers.csv --force --trust",
    "report": "report bundle -o page.html --force",
    "train": "train model.py --data loaders.py --epochs 2 --log-interval 1 -o run",
    "resume": "train --resume old --trust",
    "export": "export bundle --sparsity 0.5 -o model.onnx --force --trust --no-verify",
    "sweep": "sweep old --no-bench --sparsity 0.5 --pick sparsity<0.7 --into picked -o sweep.html "
    "--force --trust",
    "sensitivity": "sensitivity old --sparsity 0.5 --budget 0.3 -x costs.json -o budgets.toml "
    "--force --trust",
    "compare": "compare old old/model.st3fx -o compare.html --force --trust",
    "inspect": "inspect old",
}
"""Each replaces what is there, but for a training, which makes a folder."""

WEIGHTS = (6, 6, 4, 4, 4, 6, 4, 1, 4, 3, 3, 2)
"""How often each is tried: an export takes seconds."""

HEAVY = "0" * 200_000
"""In files, so that results are larger than a page of the disk."""


@dataclass(frozen=True)
class Said:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str
    error: str


def case(seed: int, folder: Path) -> str | None:
    """One command under one limit."""
    choose = random.Random(seed)
    name = choose.choices(tuple(LINES), WEIGHTS)[0]
    line = LINES[name].split()
    kind = choose.choice(tuple(SHORTAGES))
    with SHORTAGES[kind](folder, choose) as (place, limit):
        before = _snapshot(place)
        said = _run(line, place, limit)
        told = f"{kind}, {' '.join(line)}: "
        if said is None:
            return f"{told}the process died"
        problem = _judge(said, before, _snapshot(place), name)
        if problem is not None:
            return f"{told}{problem}"
    if said.code == 0:
        return None
    if name == "train" and (place / "run" / "settings.toml").exists():
        line = ["train", "--resume", "run", "--trust"]
    again = _run(line, place, lambda: None)
    if again is None or again.code != 0:
        return f"{told}then without a limit: {again and again.stderr[-300:]}"
    return None


def _judge(said: Said, before: dict[str, str], after: dict[str, str], name: str) -> str | None:
    if said.code == 0:
        return None
    lines = [line for line in said.stderr.splitlines() if not line.startswith("warning: ")]
    if said.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit code {said.code}, {said.error}, {said.stderr[-300:]!r}"
    # One says how long it took, the other in which folder its model lies.
    before, after = ({k: v for k, v in files.items() if k not in _VARY}
                     for files in (before, after))  # fmt: skip
    if name in ("train", "resume"):  # a run that ended half-way
        before, after = ({k: v for k, v in files.items() if k.partition("/")[0] not in _RUNS}
                         for files in (before, after))  # fmt: skip
    changed = sorted({path for path, _ in before.items() ^ after.items()})
    return f"changed {', '.join(changed[:4])}; {lines[0]}" if changed else None


_RUNS = ("run", "old")
_VARY = ("costs.json", "picked/model.st3fx/manifest.json")


def _run(line: list[str], place: Path, limit: Callable[[], object]) -> Said | None:
    """Run a command in a fork, under a limit; ``None`` where that did not live to tell."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.chdir(place)
            tempfile.tempdir = None
            held = [(kind, resource.getrlimit(kind)) for kind in _LIMITED]
            limit()
            result = CliRunner().invoke(main, line)
            for kind, (soft, hard) in held:
                resource.setrlimit(kind, (soft, hard))
            said = (result.exit_code, result.stdout, result.stderr, repr(result.exception))
            os.write(writer, json.dumps(said).encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return Said(*json.loads(text)) if text else None


_LIMITED = (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)


@functools.cache
def _ready() -> Path:
    """A folder with what lines name, and with their results.

    Libraries are loaded here, so that no fork has to; but nothing is run, which would leave threads
    that a fork does not have.
    """
    for module in ("convert", "train", "fold", "export", "analyze", "report", "sweep",
                   "sensitivity", "compare", "inspect"):  # fmt: skip
        importlib.import_module(f"st3fx.commands.{module}")
    folder = Path(tempfile.mkdtemp(prefix="st3fx-starved-"))
    folder.chmod(0o755)
    os.environ["ST3FX_TRUST"] = str(folder / "trust.json")
    write(folder, "model.py", TINY)
    write(folder, "loaders.py", LOADERS)
    old = "train model.py --data loaders.py --epochs 2 --log-interval 1 -o old"
    for line in (old, *LINES.values()):
        said = _run(line.split(), folder, lambda: None)
        assert said is not None, line
        assert said.code == 0, f"{line}: {said.stderr}"
    shutil.rmtree(folder / "run")
    (folder / "diary.txt").write_text(HEAVY)
    return folder


def _fill(place: Path) -> None:
    shutil.copytree(_ready(), place, dirs_exist_ok=True, ignore=lambda *_: ["trust.json"])


def _snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "filler" and "__pycache__" not in path.parts
    } | {
        str(path.relative_to(folder)): "a folder for what is half-written"
        for path in folder.rglob(".*.part")
    }


Limited = Iterator[tuple[Path, Callable[[], object]]]


@contextlib.contextmanager
def _full_disk(folder: Path, choose: random.Random) -> Limited:
    """A file system with some kilobytes left, or where one may not be mounted, short files."""
    room = choose.choice((0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)) * 1024
    libc = ctypes.CDLL(None, use_errno=True)
    place = folder / "disk"
    place.mkdir()
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=32m,mode=755") != 0:
        _fill(place)
        yield place, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, _hard("FSIZE")))
        return
    try:
        _fill(place)
        free = os.statvfs(place)
        with (place / "filler").open("wb") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_bsize - room)))
        yield place, lambda: None
        (place / "filler").unlink(missing_ok=True)
        kept = folder / "kept"
        shutil.copytree(place, kept, symlinks=True)
    finally:
        libc.umount2(bytes(place), 2)
    shutil.copytree(kept, place, dirs_exist_ok=True)


def _hard(name: str) -> int:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]


@contextlib.contextmanager
def _no_rights(folder: Path, choose: random.Random) -> Limited:
    """A folder, or files in it, that may not be written to, even for root."""
    place = folder / "locked"
    _fill(place)
    own = choose.random() < 0.5
    folder.chmod(0o755)
    changed = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for path in changed:
        path.chmod(0o555)
    if own:  # files that may be written to, in a folder that may not
        for path in place.rglob("*"):
            if path.is_file():
                path.chmod(0o666)

    yield place, _obey_rights
    for path in changed:
        path.chmod(0o755)


def _obey_rights() -> None:
    """Let root, too, write only where it may: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits of each
    assert libc.capget(header, sets) == 0
    for place in (0, 1):
        sets[place] &= ~0b110
    assert libc.capset(header, sets) == 0


@contextlib.contextmanager
def _few_handles(folder: Path, choose: random.Random) -> Limited:
    """So many more files may be open than are."""
    more = choose.randrange(12)
    _fill(folder)

    def limit() -> None:
        used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        while (last := os.open(os.devnull, os.O_RDONLY)) < used:
            pass  # a number that was closed would be one more
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + more, _hard("NOFILE")))

    yield folder, limit


@contextlib.contextmanager
def _little_memory(folder: Path, choose: random.Random) -> Limited:
    """So many more megabytes may be had than are."""
    more = choose.choice((0, 1, 2, 4, 8, 16, 32, 64, 128))
    _fill(folder)

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, _hard("AS")))

    yield folder, limit


SHORTAGES: dict[str, Callable[[Path, random.Random], Any]] = {
    "full disk": _full_disk,
    "no rights": _no_rights,
    "few handles": _few_handles,
    "little memory": _little_memory,
}
