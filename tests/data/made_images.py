"""The same images as a folder of files, as shards, and as a saved data set."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def contents(count: int, seed: int) -> list[tuple[bytes, int]]:
    """PNG files of noise of 30×40, with their classes; as many of each."""
    generator = np.random.default_rng(seed)
    found = []
    for label in range(len(CLASSES)):
        for _ in range(count):
            file = io.BytesIO()
            pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            found.append((file.getvalue(), label))
    return found


def parts(train: int = 4, test: int = 2) -> dict[str, list[tuple[bytes, int]]]:
    """Training and test images."""
    return {"train": contents(train, 0), "val": contents(test, 1)}


def write_folder(root: Path) -> Path:
    for part, images in parts().items():
        for number, (content, label) in enumerate(images):
            folder = root / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.png").write_bytes(content)
    return root


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(root: Path, *, size: int = 5) -> Path:
    for part, images in parts().items():
        members = [
            [(f"{number:05}.png", content), (f"{number:05}.cls", b"%d\n" % label)]
            for number, (content, label) in enumerate(images)
        ]
        for number in range(0, len(members), size):
            chosen = [member for pair in members[number : number + size] for member in pair]
            write_tar(root / part / f"{number // size:04}.tar", chosen)
    return root


def write_saved(root: Path) -> Path:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    names = {"train": "train", "val": "validation"}
    made = {
        names[part]: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": content, "path": None} for content, _ in images],
                "label": [label for _, label in images],
            },
            features=features,
        )
        for part, images in parts().items()
    }
    datasets.disable_progress_bars()
    datasets.DatasetDict(made).save_to_disk(str(root))
    return root
