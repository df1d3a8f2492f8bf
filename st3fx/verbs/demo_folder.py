"""What lies where in the folder of a demo, and when it may be written to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from st3fx.errors import TrainError
from st3fx.files.bundle import MANIFEST
from st3fx.training.folder import RunFolder


@dataclass(frozen=True)
class DemoFolder:
    """Paths of what a demo writes.

    Attributes:
        path: The folder.
        name: Of the model.
    """

    path: Path
    name: str

    @property
    def bundle(self) -> Path:
        """The converted model, before training."""
        return self.path / f"{self.name}.st3fx"

    @property
    def dense(self) -> RunFolder:
        """The training without sparsity."""
        return RunFolder(self.path / "dense")

    @property
    def sparse(self) -> RunFolder:
        """The training in which the sparsity rises; what is made of its model lies there too."""
        return RunFolder(self.path / "sparse")

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def begun(self) -> bool:
        """Whether a demo is here."""
        return (self.bundle / MANIFEST).is_file()

    def check(self, *, again: bool, force: bool) -> None:
        """Fail early if a demo cannot be written here. Writes nothing.

        Args:
            again: Whether a demo that is here is gone on with.
            force: Whether it is replaced.

        Raises:
            TrainError: When something else is here, or a demo and neither is asked for.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.begun:
            raise TrainError(f"{self.path} is not empty and no demo: choose another --output-dir")
        if not (again or force):
            raise TrainError(
                f"{self.path} holds a demo: go on with it by --resume, choose another "
                "--output-dir, or replace it by --force"
            )
