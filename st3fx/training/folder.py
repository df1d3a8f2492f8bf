"""The folder of a run: what lies where in it, and when it may be written to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from st3fx.errors import TrainError
from st3fx.files.atomic import replace_file, tidy
from st3fx.training.settings import Settings, to_toml

SETTINGS = "settings.toml"


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
    def quantized(self) -> tuple[Path, ...]:
        """All that it writes: these files hold for one bundle."""
        sparse = self.int8.with_name(f"{self.int8.stem}.sparse.onnx")
        files = [each for path in (self.int8, sparse) for each in (path, Path(f"{path}.data"))]
        return (*files, self.path / "quantize.json")

    @property
    def bench(self) -> Path:
        """What ``st3fx bench -x`` measured, for the report."""
        return self.path / "bench.json"

    @property
    def report(self) -> Path:
        """What ``st3fx report`` writes."""
        return self.path / "report.html"

    def check_new(self, *, force: bool) -> None:
        """Fail early if a new run cannot be written here. Writes nothing.

        Raises:
            TrainError: When something is there and ``force`` is not given, or is not a run.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.settings.is_file():
            raise TrainError(f"{self.path} is not empty and no run: choose another --output-dir")
        if not force:
            raise TrainError(
                f"{self.path} holds a run: go on with it by --resume {self.path}, choose another "
                "--output-dir, or replace it by --force"
            )

    def create(self, settings: Settings) -> None:
        """Make the folder for a new run; a run that is there is removed.

        Raises:
            TrainError: When it cannot be written.
        """
        try:
            files = (self.log, self.last, self.best, self.curves, self.folded)
            for old in (*files, *self.quantized, self.bench, self.report):
                old.unlink(missing_ok=True)
            for folder in (self.tensorboard, self.bundle):
                if folder.exists():
                    shutil.rmtree(folder)
            self.last.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.settings, lambda file: file.write(to_toml(settings).encode()))
        except OSError as error:
            raise TrainError(f"cannot write {self.path}: {error.strerror or error}") from error

    def tidy(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in (self.path, self.last.parent):
            tidy(folder)


def find_run(path: Path) -> tuple[RunFolder, Path]:
    """The run at ``path`` and the checkpoint that is meant.

    Args:
        path: The run's folder, which means its newest checkpoint, or one of its checkpoints.

    Raises:
        TrainError: When there is no run.
    """
    folder = RunFolder(path.parent.parent if path.is_file() else path)
    if not folder.settings.is_file():
        raise TrainError(f"no run in {folder.path}: it has no {SETTINGS}")
    checkpoint = path if path.is_file() else folder.last
    if not checkpoint.is_file():
        raise TrainError(f"{folder.path} has no checkpoint yet: start it anew with --force")
    return folder, checkpoint
