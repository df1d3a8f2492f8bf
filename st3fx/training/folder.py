"""The folder of a run: what lies where in it, and when it may be written to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from st3fx.errors import TrainError, quoted
from st3fx.files.atomic import check_place, replace_file, tidy
from st3fx.files.lock import FileLock
from st3fx.files.ours import BUNDLE, is_bundle, is_ours
from st3fx.training.settings import FREE, RESUMABLE, Settings, read_run, to_toml

SETTINGS = "settings.toml"
LOCK = ".st3fx.lock"

_MODELS = ("onnx", "sparse.onnx", "int8.onnx", "int8.sparse.onnx")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """The resolved settings."""
        return self.path / SETTINGS

    @property
    def log(self) -> Path:
        """One JSON object per row."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch at the full sparsity."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def curves(self) -> Path:
        """The picture."""
        return self.path / "curves.png"

    @property
    def bundle(self) -> Path:
        """The trained model, still converted."""
        return self.path / "model.st3fx"

    @property
    def folded(self) -> Path:
        """The state dict of the folded model."""
        return self.path / "folded.safetensors"

    @property
    def int8(self) -> Path:
        """The model in 8-bit integers, as ``st3fx quantize`` writes it."""
        return self.path / "model.int8.onnx"

    @property
    def results(self) -> tuple[Path, ...]:
        """What other verbs make of the trained model, under the names that they choose."""
        models = [self.path / f"model.{kind}" for kind in _MODELS]
        files = [each for path in models for each in (Path(f"{path}.data"), path)]
        names = ("model.st3w", "quantize.json", "finetune.jsonl")
        return (
            *files, *(self.path / name for name in names), self.bench, self.sensitivity,
            self.report, self.sweep, self.sweep.with_suffix(".json"),
        )  # fmt: skip

    @property
    def bench(self) -> Path:
        """What ``st3fx bench -x`` measured, for the report."""
        return self.path / "bench.json"

    @property
    def sensitivity(self) -> Path:
        """What ``st3fx sensitivity`` measured, for the report."""
        return self.path / "sensitivity.json"

    @property
    def report(self) -> Path:
        """What ``st3fx report`` writes."""
        return self.path / "report.html"

    @property
    def sweep(self) -> Path:
        """The page that ``st3fx sweep`` writes, and beside it a JSON file of the same name."""
        return self.path / "sweep.html"

    def check_new(self, *, force: bool) -> None:
        """Fail early if a new run cannot be written here. Writes nothing.

        Raises:
            TrainError: When something is there and ``force`` is not given, or is not a run, or
                where a file of the user's stands in the place of one of the run's.
        """
        self.tidy()
        if not self.path.exists():
            check_place(self.path, TrainError)
            return
        if not self.path.is_dir():
            raise TrainError(f"{self.path} is a file: name a folder for the run")
        if not self._entries():
            return
        if not self.settings.is_file():
            raise TrainError(f"{self.path} is not empty and no run: choose another --output-dir")
        if not force:
            raise TrainError(
                f"{self.path} holds a run: go on with it by --resume {quoted(self.path)}, choose "
                "another --output-dir, or replace it by --force"
            )
        if not is_ours(self.settings):
            raise TrainError(
                f"{self.settings} is not as st3fx train wrote it, and --force replaces only runs: "
                "choose another --output-dir"
            )
        self.check_free()

    def _entries(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != LOCK]

    def check_free(self) -> None:
        """Fail early if another training writes here, or would find files of the user's.

        Raises:
            TrainError: Then.
        """
        with contextlib.suppress(FileNotFoundError), FileLock(self.path / LOCK) as lock:
            if not lock.take(make=False, shared=True):
                raise self._busy()
        strange = [p for p in (self.folded, self.curves) if os.path.lexists(p) and not is_ours(p)]
        inside = self.bundle.iterdir() if self.bundle.is_dir() else ()
        strange += [path for path in inside if path.name not in BUNDLE]
        if self.bundle.is_dir() and not is_bundle(self.bundle):
            strange.append(self.bundle)
        if strange:
            raise TrainError(
                f"{strange[0]} was not written by st3fx, and stands where the run writes: move it "
                "away"
            )

    def _busy(self) -> TrainError:
        with contextlib.suppress(OSError):
            holder = (self.path / LOCK).read_text(encoding="utf-8", errors="replace")[:100]
            return TrainError(
                f"{self.path} is being trained by {holder or 'another process'}: wait for it or "
                "stop it, or choose another --output-dir"
            )
        return TrainError(f"{self.path} was being trained until now: try again")

    @contextlib.contextmanager
    def locked(self, note: Callable[[str], None]) -> Iterator[None]:
        """Within, no other training writes here; a process that dies lets go of it.

        Args:
            note: Told where the file system has no locks.

        Raises:
            TrainError: When another one does, or nothing can be written here.
        """
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tries = 0
            while not lock.take():
                tries += 1
                if tries == 5:
                    raise self._busy()
                time.sleep(0.05)  # whoever only looks has it for some microseconds
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            raise TrainError(f"cannot write {self.path}: {error.strerror or error}") from error
        if not lock.is_sure:
            note(f"{self.path} is on a file system without locks: train nothing else into it")
        try:
            yield
        finally:
            lock.release(remove=True)

    def create(self, settings: Settings) -> None:
        """Make the folder for a new run; of a run that is there, all that st3fx wrote goes.

        Raises:
            TrainError: When it cannot be written.
        """
        try:
            # In an order in which a run that is killed meanwhile is whole, or has no checkpoint.
            for old in (self.best, self.last, self.log, self.curves, self.folded):
                old.unlink(missing_ok=True)
            self.remove_results()
            _remove_events(self.tensorboard)
            for name in BUNDLE if self.bundle.is_dir() else ():
                (self.bundle / name).unlink(missing_ok=True)
            if self.bundle.is_dir():
                self.bundle.rmdir()
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(settings)
            self.last.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise TrainError(f"cannot write {self.path}: {error.strerror or error}") from error

    def accept(self, settings: Settings) -> None:
        """From now on these are the run's settings.

        Raises:
            TrainError: When they cannot be written.
        """
        try:
            self._write(settings)
        except OSError as error:
            raise TrainError(f"cannot write {self.settings}: {error.strerror or error}") from error

    def keep(self, settings: Settings) -> None:
        """Let the run's settings have what it goes on with otherwise, for its next resumption.

        Raises:
            TrainError: When they cannot be read or written.
        """
        written = read_run(self.settings, accepted=False)
        now = {name: getattr(settings, name) for name in RESUMABLE - FREE}
        if now != {name: getattr(written, name) for name in now}:
            self.accept(dataclasses.replace(written, **now))

    def _write(self, settings: Settings) -> None:
        replace_file(self.settings, lambda file: file.write(to_toml(settings).encode()))

    def remove_results(self) -> None:
        """Remove what was made of an older model; files of these names that others wrote stay."""
        for path in self.results:
            if is_ours(path):
                path.unlink()

    def tidy(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in (self.path, self.last.parent):
            tidy(folder)


def _remove_events(folder: Path) -> None:
    """Remove what the TensorBoard tracker wrote, and folders that are empty then."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name.startswith("events.out.tfevents.") or path.name == "hparams.yml":
            path.unlink()
        elif path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def find_run(path: Path) -> tuple[RunFolder, Path | None]:
    """The run at ``path`` and the checkpoint that is meant; ``None`` where it has none yet.

    Args:
        path: The run's folder, which means its newest checkpoint, or one of its checkpoints.

    Raises:
        TrainError: When there is no run.
    """
    folder = RunFolder(path.parent.parent if path.is_file() else path)
    if not folder.settings.is_file():
        raise TrainError(f"no run in {folder.path}: it has no {SETTINGS}")
    folder.tidy()
    checkpoint = path if path.is_file() else folder.last
    if not checkpoint.is_file():
        checkpoint = folder.best
    return folder, checkpoint if checkpoint.is_file() else None
