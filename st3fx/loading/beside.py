"""Watches what a user's code imports from its own folder: it is run on the same word.

A file that is trusted would otherwise run whatever lies beside it by the name of a module that it
imports. On data's word a module runs only as it was when the user ran it: its bytes are read once,
compared and compiled, past ``__pycache__``, which may hold something else. What the user's own word
runs is noted, also where a function imports it later. An import that no code of the data's has
asked for is the user's own, whatever has been opened before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType, ModuleType

from st3fx.loading.trust import IMPORTED, Permit


class _Read(SourceFileLoader):
    """Runs a source that was read before."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compile it."""
        code: CodeType = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


class _Watch(MetaPathFinder):
    """Comes before Python's own finders, and looks where they would look."""

    def __init__(self) -> None:
        self.folders: dict[str, Permit] = {}
        self.packages: dict[str, Permit] = {}
        self.on_data: set[str] = set()  # files that ran on data's word, as tracebacks name them

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module of a folder that is watched; ``None`` leaves it to the other finders.

        Raises:
            TrustError: When data's word runs it and it is not as the user has run it.
        """
        top = fullname.partition(".")[0]
        if path is not None and top not in self.packages:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        permit = self.packages.get(top)
        if found is None or (path is None and permit is None and not (permit := self._at(found))):
            return None
        assert permit is not None
        if not permit.is_free and not self._is_on_the_way():
            return None
        self.packages[top] = permit
        if found.origin is None or found.loader is None:  # a folder without __init__.py
            return found
        file = Path(found.origin)
        source = file.read_bytes()
        permit.check(file.resolve(), source, IMPORTED)
        if permit.is_free or not isinstance(found.loader, SourceFileLoader):
            return found
        self.on_data.add(found.origin)
        return spec_from_file_location(
            fullname, found.origin, loader=_Read(fullname, found.origin, source),
            submodule_search_locations=found.submodule_search_locations,
        )  # fmt: skip

    def _is_on_the_way(self) -> bool:
        """Whether code that ran on data's word is among the callers."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename not in self.on_data:
            frame = frame.f_back
        return frame is not None

    def _at(self, found: ModuleSpec) -> Permit | None:
        """That of the folder which a module without dots in its name was found in."""
        places = found.submodule_search_locations
        place = next(iter(places), None) if places is not None else found.origin
        return None if place is None else self.folders.get(str(Path(place).parent))


_watch = _Watch()


def watch(folder: Path, permit: Permit, source: str, package: str | None = None) -> None:
    """From here on, modules of a folder are run on this word.

    Args:
        folder: An entry of ``sys.path``.
        permit: Whose word.
        source: The file of the code that it was given for, as tracebacks name it.
        package: A package that is run on it too, wherever it lies.
    """
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _watch.folders[str(folder)] = permit
    if not permit.is_free:
        _watch.on_data.add(source)
    # What was found before may be found elsewhere now.
    _watch.packages = {} if package is None else {package: permit}


def locate(name: str) -> Path | None:
    """The file of a module, as an import would find it, without running the packages above it."""
    places: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    found: ModuleSpec | None = None
    whole = ""
    for part in name.split("."):
        whole = f"{whole}.{part}".removeprefix(".")
        found = PathFinder.find_spec(whole, places) if places is not None else None
        if found is None:
            return None
        places = None
        if found.submodule_search_locations is not None:
            places = list(found.submodule_search_locations)
    return Path(found.origin) if found is not None and found.origin is not None else None
