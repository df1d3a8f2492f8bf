"""``kill -9`` of the verbs that write, before any one of their file-system calls or at any moment.

Each verb runs in a fork of a warm process: once whole, which gives what it must leave and how many
calls it makes; then killed, once or several times; then again until it is done. Files of the user's
lie where it writes and must stay, an older result is there in half of the cases and must be whole
(or be replaced as a whole), and nothing half-written may be left in the end.

Run as a module this is the warm process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DECOYS = {".mine.part": "", ".old.old": "", "notes.txt": "dear", "model.onnx.bak": "dear"}
"""Files of the user's, some with names as ours."""

OFTEN = ("train", "convert", "fold", "export", "quantize", "report", "sweep")
"""Verbs by turns."""

SELDOM = {24: "demo", 9: "sensitivity", 16: "compare"}
"""Of every 25 cases these are of other verbs."""

OTHERWISE = {
    "train": ("--seed", "1"), "convert": ("--seed", "1"), "report": (), "compare": (),
    "sweep": ("--sparsity", "0.6"), "sensitivity": ("--sparsity", "0.7"),
}  # fmt: skip
"""How an older result was made; where nothing is said, at another sparsity."""

MANY = ("sweep", "sensitivity", "compare")
"""Verbs that write several files, each whole, of which some may be of the older result."""


@dataclass(frozen=True)
class Verb:
    """A command, and where it writes.

    Attributes:
        arguments: Of the command line, but for ``--force`` and ``--resume``.
        place: The folder that it writes into, below the case's.
        results: What it writes, by which a whole run and one that was killed are compared; no two
            of the same name.
    """

    arguments: tuple[str, ...]
    place: str
    results: tuple[str, ...]


VERBS = {
    "train": Verb(
        ("train", "net.py", "--data", "loaders.py", "--epochs", "3", "--batch-size", "30",
         "--log-interval", "2", "--bn-recalibrate", "2", "--checkpoint-every", "2", "-o", "made"),
        "made",
        ("folded.safetensors", "model.st3fx/model.safetensors", "checkpoints/last.pt"),
    ),
    "convert": Verb(
        ("convert", "net.py", "--input", "2x1x28x28", "-o", "made/net.st3fx"),
        "made/net.st3fx",
        ("model.safetensors", "graph.txt"),
    ),
    "fold": Verb(
        ("fold", "run/model.st3fx", "--trust", "-o", "made/net.safetensors"),
        "made", ("net.safetensors",),
    ),
    "export": Verb(
        ("export", "run/model.st3fx", "--trust", "-o", "made/net.onnx"), "made", ("net.onnx",),
    ),
    "quantize": Verb(
        ("quantize", "run", "--trust", "--no-rank", "--sparse-kernels", "--calibration-images",
         "30", "--test-images", "20", "-o", "made/net.int8.onnx"),
        "made", ("net.int8.onnx",),
    ),
    "report": Verb(("report", "run", "--trust", "-o", "made/page.html"), "made", ("page.html",)),
    "sweep": Verb(
        ("sweep", "run", "--trust", "--no-bench", "--sparsity", "0.5", "--pick", "sparsity<0.7",
         "-o", "made/sweep.html", "--png", "made", "--into", "made/picked"),
        "made",
        ("sweep.html", "sweep.json", "accuracy.png", "accuracy-bytes.png",
         "picked/model.st3fx/model.safetensors", "picked/folded.safetensors",
         "picked/model.st3w"),
    ),
    "sensitivity": Verb(
        ("sensitivity", "run", "--trust", "--sparsity", "0.5", "--budget", "0.3", "-x",
         "made/costs.json", "--html", "made/page.html", "-o", "made/budgets.toml"),
        "made", ("costs.json", "page.html", "budgets.toml"),
    ),
    "compare": Verb(
        ("compare", "run", "run/model.st3fx", "--trust", "-o", "made/page.html", "--png", "made"),
        "made", ("page.html",),
    ),
    "demo": Verb(("demo",), "made", ("sparse/folded.safetensors", "sparse/model.st3w")),
}  # fmt: skip


# In the case's process.


class Server:
    """Starts verbs in forks of the warm process."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.kills"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(self._process.kill)
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def run(
        self, orders: list[dict[str, Any]], during: Callable[[list[int]], None] | None = None
    ) -> list[tuple[int, int]]:
        """Carry out orders side by side, each in a process of its own.

        Args:
            orders: As :func:`obey` takes them.
            during: Is given the processes while they run.

        Returns:
            Of each its exit code, negative for a signal, and how many file-system calls it made.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        processes = self._read()
        if during is not None:
            during(processes)
        return [(code, calls) for code, calls in self._read()]


@functools.cache
def server() -> Server:
    """The warm process; it ends with this one."""
    return Server()


@dataclass(frozen=True)
class Whole:
    """A run that was not killed: how many calls, how long, and what it left."""

    calls: int
    seconds: float
    left: dict[str, str]


@functools.cache
def inputs() -> Path:
    """A folder with a model, its data, and a trained run of it."""
    from tests.models import write
    from tests.training.runs import LOADERS, NET

    folder = Path(tempfile.mkdtemp(prefix="st3fx-kills-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(folder, "net.py", NET)
    write(folder, "loaders.py", LOADERS)
    verb = VERBS["train"]
    run(folder, verb, [*verb.arguments[:-1], "run"])
    return folder


def run(
    folder: Path, verb: Verb, arguments: list[str], *, kill: int | None = None, large: bool = False,
    exchange: bool = True, during: Callable[[list[int]], None] | None = None,
) -> list[int]:  # fmt: skip
    """Run a verb in ``folder``; one that fails by itself raises what it said."""
    log = folder.parent / f"{folder.name}.log"
    order = {
        "arguments": arguments, "folder": str(folder), "kill": kill, "large": large,
        "exchange": exchange, "log": str(log),
    }  # fmt: skip
    try:
        code, calls = server().run([order], during)[0]
        if code not in (0, -signal.SIGKILL):
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{' '.join(arguments)} ended with {code}: {''.join(last)[-300:]}")
        return [code, calls]
    finally:
        log.unlink(missing_ok=True)


def prepare(folder: Path, name: str) -> None:
    """Copy what a verb works on into its folder."""
    from tests.models import write
    from tests.training.runs import LOADERS, NET

    if name in ("train", "convert", "demo"):
        write(folder, "net.py", NET)
        write(folder, "loaders.py", LOADERS)
    else:
        shutil.copytree(inputs(), folder, dirs_exist_ok=True)


@functools.cache
def whole(name: str, *, large: bool) -> Whole:
    """What a verb does when it is not killed."""
    with tempfile.TemporaryDirectory(prefix="st3fx-whole-") as text:
        folder, verb = Path(text), VERBS[name]
        prepare(folder, name)
        (folder / "made").mkdir()
        if name in ("convert", "train", "demo"):
            (folder / "made").rmdir()
        began = time.monotonic()
        code, calls = run(folder, verb, [*verb.arguments], large=large)
        assert code == 0
        return Whole(calls, time.monotonic() - began, results(folder, verb))


def results(folder: Path, verb: Verb) -> dict[str, str]:
    """What a verb left, by a digest of what must be the same in each run."""
    found = {}
    for name in verb.results:
        for path in (folder / verb.place / name, Path(f"{folder / verb.place / name}.data")):
            if path.is_file():
                found[path.name] = hashlib.sha256(content(path)).hexdigest()
    return found


def content(path: Path) -> bytes:
    """Without what depends on the clock or the folder."""
    if path.suffix == ".pt":
        import torch

        saved = torch.load(path, weights_only=True)
        saved = {key: saved[key] for key in ("model", "optimizer", "step", "epoch", "ranks")}
        return repr(plain(saved)).encode()
    if path.suffix == ".html":  # whole, and of this run
        return path.read_bytes().rstrip()[-7:]
    if path.name == "costs.json":
        said = json.loads(path.read_bytes())
        return json.dumps({**said, "seconds": 0, "digest": ""}).encode()
    if path.name == "sweep.json":  # a bundle names the folder of its model
        return re.sub(rb'"model.st3fx": \d+', b"", path.read_bytes())
    # The name of a user's module has a digest of its folder in it, which the file's own covers.
    text = re.sub(rb"(st3fx_user_)[0-9a-f]{12}", rb"\1", path.read_bytes())
    return re.sub(rb"[0-9a-f]{64}", b"", text) if path.suffix == ".onnx" else text


def plain(value: Any) -> Any:
    """Tensors as their bytes, so that a text tells every bit."""
    import torch

    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def case(seed: int, folder: Path) -> str | None:
    """Kill one verb, run it again, and compare."""
    chance = random.Random(seed)
    name = SELDOM.get(seed % 25, OFTEN[seed % len(OFTEN)])
    verb, again = VERBS[name], chance.random() < 0.5 and name != "demo"
    large = name in ("export", "quantize") and chance.random() < 0.5
    expected = whole(name, large=large)
    work = folder / "work"
    work.mkdir()
    prepare(work, name)
    place = work / verb.place
    if name not in ("convert", "train", "demo"):
        (work / "made").mkdir()
    if again:  # there is an older result, which was made otherwise
        other = OTHERWISE.get(name, ("--sparsity", "0.95"))
        run(work, verb, [*verb.arguments, *other], large=large)
    decoys = lay_decoys(work / "made" if name not in ("train", "demo") or again else work)
    if again and name == "convert":
        decoys |= lay_decoys(place)
    if name == "sweep":
        decoys |= lay_decoys(place / "picked")
        decoys |= lay_decoys(place / "picked" / "model.st3fx") if again else {}
    before = results(work, verb)
    exchange = chance.random() < 0.7
    killed = 0
    for _ in range(chance.choice((1, 1, 2, 3))):
        kill, during = moment(chance, expected)
        arguments = [*verb.arguments, *flags(name, work, verb, again=again and not killed)]
        code, _ = run(
            work, verb, arguments, kill=kill, exchange=exchange, during=during, large=large
        )
        killed += code != 0
        if (seen := lost(name, work, verb, before, expected)) is not None:
            return f"{name}: {seen}"
        again = again or (work / "made").exists()
    finish = [*verb.arguments, *flags(name, work, verb, again=False)]
    code, _ = run(work, verb, finish, exchange=exchange, large=large)
    return ended(name, work, verb, expected, decoys) if code == 0 else f"{name}: {code}"


def moment(
    chance: random.Random, expected: Whole
) -> tuple[int | None, Callable[[list[int]], None] | None]:
    """When to kill: before a certain call, or after some time."""
    if chance.random() < 0.7:
        return chance.randrange(expected.calls), None
    delay = chance.uniform(0, 1.1 * expected.seconds)

    def later(processes: list[int]) -> None:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes[0], signal.SIGKILL)

    return None, later


def flags(name: str, work: Path, verb: Verb, *, again: bool) -> list[str]:
    """What a user gives who runs the same once more."""
    if name == "train":
        run_folder = work / verb.place
        saved = any((run_folder / "checkpoints" / f"{n}.pt").exists() for n in ("last", "best"))
        settings = run_folder / "settings.toml"
        # Killed before the new run began, the older one is there as it was.
        older = settings.exists() and "\nseed = 1\n" in settings.read_text()
        if saved and not again and not older:
            return ["--resume"]
        return ["--force"] if (run_folder / "settings.toml").exists() else []
    if name == "demo":
        return ["--resume"]
    return ["--force"]


def lay_decoys(folder: Path) -> dict[Path, str]:
    """Put files of the user's into a folder."""
    folder.mkdir(exist_ok=True, parents=True)
    laid = {}
    for name, text in DECOYS.items():
        (folder / name).write_text(text)
        laid[folder / name] = text
    return laid


def lost(
    name: str, work: Path, verb: Verb, before: dict[str, str], expected: Whole
) -> str | None:  # fmt: skip
    """Whether after a kill a result is neither the old nor the new one, once it is looked for."""
    from st3fx.files.atomic import recover, tidy

    if name in ("train", "demo") or not before:
        return None
    place = work / verb.place
    if name == "convert":
        recover(place)
    else:
        tidy(place)
    if name == "sweep":
        recover(place / "picked" / "model.st3fx")
        tidy(place / "picked")
    now = results(work, verb)
    if name in MANY:
        odd = [key for key in before if now.get(key) not in (before[key], expected.left[key])]
        return f"neither the old nor the new: {odd}" if odd else None
    return None if now in (before, expected.left) else f"neither the old nor the new: {now}"


def ended(
    name: str, work: Path, verb: Verb, expected: Whole, decoys: dict[Path, str]
) -> str | None:  # fmt: skip
    """Whether all is as after a run that was not killed."""
    for path, text in decoys.items():
        if not path.is_file() or path.read_text() != text:
            return f"{name}: the user's {path.name} is gone or changed"
    now = results(work, verb)
    if now != expected.left:
        odd = [key for key in expected.left if now.get(key) != expected.left[key]]
        return f"{name}: differs in {odd or sorted(now)}"
    left = [p for p in work.rglob(".*") if p not in decoys and (p.is_dir() or p.suffix == ".part")]
    left += work.rglob(".st3fx.lock")
    return f"{name}: left {[str(p.relative_to(work)) for p in left]}" if left else None


# In the warm process.


def serve() -> None:
    """Read orders, run each in a fork, answer with its process, then its end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warm()

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer("ready")
    for line in sys.stdin:
        children = []
        for order in json.loads(line):
            reads, writes = os.pipe()
            child = os.fork()
            if not child:
                os.close(reads)
                obey(order, writes)
            os.close(writes)
            children.append((child, reads))
        answer([child for child, _ in children])
        ends = []
        for child, reads in children:
            _, status = os.waitpid(child, 0)
            with os.fdopen(reads) as told:
                ends.append([os.waitstatus_to_exitcode(status), int(told.read() or 0)])
        answer(ends)


def warm() -> None:
    """Import all that the verbs need, which takes longer than they do, and fill torch's caches."""
    import importlib

    from tests.models import write
    from tests.training.runs import NET

    for module in (
        "st3fx.cli", "st3fx.commands.demo", "st3fx.commands.train", "st3fx.commands.convert",
        "st3fx.commands.fold", "st3fx.commands.export", "st3fx.commands.quantize",
        "st3fx.commands.report", "st3fx.commands.sweep", "st3fx.commands.sensitivity",
        "st3fx.commands.budgets", "st3fx.commands.compare",
        "matplotlib.figure", "matplotlib.backends.backend_agg",
        "tensorboard.summary", "torch.utils.tensorboard", "torch._dynamo", "torch.onnx",
        "torch.export", "onnxscript", "onnxruntime.quantization", "tests.commands.test_demo",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with tempfile.TemporaryDirectory() as text, contextlib.chdir(text):
        write(Path(text), "net.py", NET)
        data = ("--data", "fashion-mnist-mini", "--no-rank", "--test-images", "20")
        for verb, *more in (("fold",), ("export",), ("quantize", *data)):
            obeyed([verb, "net.py", "--input", "2x1x28x28", "--sparsity", "0.5", *more])


def obey(order: dict[str, Any], told: int) -> None:
    """In the fork: run a verb, and die before the call that was chosen."""
    code = 70
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(order["folder"])
        scratch = Path(order["folder"]) / "tmp"
        scratch.mkdir(exist_ok=True)
        os.environ |= order.get("environment", {})
        os.environ |= {"TMPDIR": str(scratch), "ST3FX_TRUST": str(scratch / "trust.json")}
        tempfile.tempdir = None
        from st3fx.export import write
        from st3fx.files import atomic

        if order["large"]:
            write.ONE_FILE = 100
        if not order["exchange"]:
            atomic._exchange = lambda first, second: False
        calls = watch(order["folder"], order["kill"])
        code = obeyed(order["arguments"])
        os.write(told, str(calls()).encode())
    except Exception:  # noqa: BLE001  nothing of this fork may go on as its parent
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def obeyed(arguments: list[str]) -> int:
    """Run the verb; its exit code."""
    if arguments[0] == "demo":
        return demo(again="--resume" in arguments)
    from st3fx.cli import main

    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def demo(*, again: bool) -> int:
    """A demo of a small model."""
    from st3fx.commands.demo import DemoSettings, run_demo
    from tests.commands.test_demo import Watch

    how = DemoSettings("st3fx:lenet_300_100", epochs=2, batch_size=500, lr=0.1, bench_seconds=0.02)
    run_demo("made", Watch(), how, again=again)
    return 0


def watch(folder: str, last: int | None) -> Callable[[], int]:
    """Count the calls that change files below ``folder``; before number ``last``, die."""
    count, root = 0, os.path.realpath(folder)
    names = {
        "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
        "fcntl.flock",
    }  # fmt: skip

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            # Anything but reading; relative names are of the folder, which is the working one.
            if not isinstance(given[2], int) or not given[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in names:
            return
        if event != "fcntl.flock":
            try:
                path = os.fsdecode(given[0])
            except TypeError:
                path = ""  # a descriptor
            if path.startswith(os.sep) and not path.startswith(root):
                return
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(hook)
    return lambda: count


if __name__ == "__main__":
    serve()
