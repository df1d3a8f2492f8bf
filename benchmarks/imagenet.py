"""A stand-in for ImageNet: made-up photographs in a thousand classes, to try a training whole.

    python -m benchmarks.imagenet make stand-in                       # 2 + 1 tiny images a class
    python -m benchmarks.imagenet make photos --classes 32 --train 8 --width 500 --height 375
    python -m benchmarks.imagenet read photos                         # images a second on one core

``make`` writes the same JPEG files as a folder of files, as shards of WebDataset, and as a data set
of Hugging Face's library. ``read`` loads training images of 224×224 from each of them as a training
does, and by a plain DataLoader of torch over torchvision's ImageFolder with the same transforms;
they take turns.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import record
from st3fx.data import DataSettings, make_data
from st3fx.data.images import MEAN, STD
from st3fx.training.batches import Batches

PARTS = {"train": "train", "val": "validation"}
"""Folder -> name of the split."""

FORMS = {"folder": "imagefolder", "shards": "webdataset", "saved": "huggingface"}
"""Folder -> what ``--data`` calls it."""

PLAIN = "torch DataLoader over ImageFolder"


def main() -> None:
    """Make the images, or read them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="what", required=True)
    make_ = parts.add_parser("make")
    for name, value in (
        ("classes", 1000), ("train", 2), ("val", 1), ("width", 64), ("height", 48),
        ("shard", 1000), ("seed", 0),
    ):  # fmt: skip
        make_.add_argument(f"--{name}", type=int, default=value)
    read_ = parts.add_parser("read")
    read_.add_argument("--rounds", type=int, default=7)
    read_.add_argument("--output", type=Path)
    for each in (make_, read_):
        each.add_argument("folder", type=Path)
    options = parser.parse_args()
    (make if options.what == "make" else read)(options)


def make(options: argparse.Namespace) -> None:
    """Write the three forms."""
    for number, part in enumerate(PARTS):
        count = getattr(options, part)
        images = photographs(options, number, count)
        _write(options.folder, part, images, options)
    (options.folder / "made.json").write_text(
        json.dumps({key: str(value) for key, value in vars(options).items()}), encoding="utf-8"
    )


def photographs(
    options: argparse.Namespace, part: int, count: int
) -> Iterator[tuple[str, bytes, int]]:
    """Name, JPEG and class: smooth patches of the class's own, and some noise; classes in turns."""
    size = (options.width, options.height)
    for number in range(count):
        for label in range(options.classes):
            generator = np.random.default_rng((options.seed, part, number, label))
            own = np.random.default_rng((options.seed, label)).normal(size=(6, 8, 3))
            patches = 128 + 40 * own + 25 * generator.normal(size=(6, 8, 3))
            small = Image.fromarray(np.clip(patches, 0, 255).astype(np.uint8))
            smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32)
            half = (-(-options.height // 2), -(-options.width // 2), 3)
            noise = generator.normal(scale=12, size=half)
            full = smooth + noise.repeat(2, 0).repeat(2, 1)[: options.height, : options.width]
            file = io.BytesIO()
            Image.fromarray(np.clip(full, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            yield f"n{label:08}_{number}", file.getvalue(), label


def _write(
    folder: Path, part: str, images: Iterator[tuple[str, bytes, int]], options: argparse.Namespace
) -> None:
    import datasets  # noqa: PLC0415 (seconds)

    made: list[tuple[str, bytes, int]] = list(images)
    for name, content, label in made:
        place = folder / "folder" / part / f"n{label:08}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.JPEG").write_bytes(content)
    place = folder / "shards" / part
    place.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(made), options.shard):
        with tarfile.open(place / f"{begin // options.shard:06}.tar", "w") as tar:
            for name, content, label in made[begin : begin + options.shard]:
                for kind, data in (("jpg", content), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{name}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    names = [f"n{label:08}" for label in range(options.classes)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    columns = {
        "image": [{"bytes": content, "path": None} for _, content, _ in made],
        "label": [label for *_, label in made],
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.disable_progress_bars()
    table.save_to_disk(str(folder / "saved" / PARTS[part]))


def read(options: argparse.Namespace) -> None:
    """Images a second of each form, in turns, and how long each takes to open."""
    torch.set_num_threads(1)
    sources: dict[str, Callable[[int], Iterator[Any]]] = {PLAIN: _plain(options.folder)}
    opened: dict[str, float] = {}
    for folder, name in FORMS.items():
        began = time.process_time()
        sources[f"--data {name}"] = _ours(options.folder / folder, name)
        opened[f"--data {name}"] = time.process_time() - began
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(options.rounds + 1):
        for name, source in sources.items():
            began, seen = time.process_time(), 0  # of one core, whatever else runs
            # Whole epochs: the loader reads a batch ahead, which an early end would waste.
            for images, _ in source(turn):
                seen += len(images)
            if turn:  # the first fills caches
                rates[name].append(seen / (time.process_time() - began))
    rows = {
        name: {**record.spread(found), "open_s": opened.get(name),
               "of_plain": record.spread([a / b for a, b in zip(found, rates[PLAIN], strict=True)])}
        for name, found in rates.items()
    }  # fmt: skip
    table = Table("source", "images a second", "quartiles", "/ plain")
    for name, row in rows.items():
        quartiles = f"{row['q1']:.1f} – {row['q3']:.1f}"
        ratio: Any = row["of_plain"]
        table.add_row(name, f"{row['median']:.1f}", quartiles, f"{ratio['median']:.3f}")
    Console().print(table)
    if options.output is not None:
        made = json.loads((options.folder / "made.json").read_text(encoding="utf-8"))
        record.write(options.output, {"environment": record.environment(), "images": made,
                                      "rows": rows})  # fmt: skip


def _plain(folder: Path) -> Callable[[int], Iterator[Any]]:
    steps = transforms.Compose([
        transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    images = ImageFolder(str(folder / "folder" / "train"), steps)
    loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
    return lambda _: iter(loader)


def _ours(folder: Path, name: str) -> Callable[[int], Iterator[Any]]:
    data = make_data(DataSettings(name=name, path=str(folder), batch_size=64))
    batches = Batches(data, Accelerator(cpu=True), 0)
    return lambda turn: (batch for _, batch in batches.epoch(turn))


if __name__ == "__main__":
    main()
