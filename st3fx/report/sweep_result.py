"""What a model is worth at several sparsities: plain data, and the condition that chooses one."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx.bench.bench_result import Ratio
from st3fx.errors import SweepError
from st3fx.report import markup

FORMAT = "st3fx-sweep"


@dataclass(frozen=True)
class Speed:
    """How fast one file of a model runs.

    Attributes:
        ms: Median of its calls, in milliseconds.
        ratio: How many times as fast as the dense file; ``None`` where it is that itself.
        row: Name of its row in the benchmark.
    """

    ms: float
    ratio: Ratio | None
    row: str


@dataclass(frozen=True)
class SweepRow:
    """One sparsity.

    Attributes:
        sparsity: What was set: a share of what the method's budget counts.
        own: Whether it is the one that the model was trained for, or pruned to.
        zeros: Share of zeros among the sites' weights.
        nonzeros: How many of them are left.
        top1: Share of test samples whose best class is right.
        top5: Among the best five; ``None`` for five classes or fewer.
        loss: Mean loss on the test data.
        macs: Multiplications of one sample that are left, by the convention ``exact``.
        bytes: Of the folded weights as a compact file.
        empty: Sites without a weight left.
        speed: Of the faster of its two files, plain and with sparse kernels; ``None`` where it was
            not measured.
        int8_top1: Top-1 in 8-bit integers; ``None`` where it was not quantized.
        int8_speed: Of the faster file in 8-bit integers.
    """

    sparsity: float
    own: bool
    zeros: float
    nonzeros: int
    top1: float
    top5: float | None
    loss: float
    macs: int
    bytes: int
    empty: tuple[str, ...] = ()
    speed: Speed | None = None
    int8_top1: float | None = None
    int8_speed: Speed | None = None

    @property
    def name(self) -> str:
        """``90 %``."""
        return share(self.sparsity)


def share(sparsity: float) -> str:
    """``90 %``, ``97.5 %``: with all of its digits."""
    return f"{100 * sparsity:.10g}{markup.SPACE}%"


@dataclass(frozen=True)
class Picked:
    """The sparsity that a condition has chosen.

    Attributes:
        condition: As it was given.
        sparsity: Of the sparsest row that holds it.
        folder: Where it was written.
        files: Name -> bytes.
    """

    condition: str
    sparsity: float
    folder: Path
    files: dict[str, int]


@dataclass(frozen=True)
class SweepResult:
    """A model at several sparsities, all from the same latent weights.

    Attributes:
        name: Of the model.
        source: The run or the bundle.
        spec: What the model is built from.
        method: How it became sparse.
        data: What it was scored on.
        samples: Test samples.
        budget: What a sparsity is a share of: ``weights`` or ``macs``.
        drawn: Between which sparsities training drew that of each step, if it did.
        calibration: Training batches that batch norm took its statistics from, at each sparsity; 0
            where it has none, or kept those of training.
        weights: Of all sites.
        dense_macs: Of one sample without zeros.
        dense_bytes: Of all weights before.
        rows: From the least sparsity on.
        dense: How fast the model is without zeros; ``None`` where it was not measured.
        dense_int8: The same in 8-bit integers.
        bench: Settings of the measurement, what it ran on, and all its rows, as JSON values; empty
            where nothing was measured.
        command: What does it again; empty where there is none.
        picked: What a condition has chosen.
        page: Where it was written; beside it there is a JSON file of the same name.
    """

    name: str
    source: Path
    spec: str
    method: str
    data: str
    samples: int
    budget: str
    drawn: tuple[float, float] | None
    calibration: int
    weights: int
    dense_macs: int
    dense_bytes: int
    rows: tuple[SweepRow, ...]
    dense: Speed | None = None
    dense_int8: Speed | None = None
    bench: dict[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    picked: Picked | None = None
    page: Path | None = None

    @property
    def own(self) -> SweepRow:
        """The row of the sparsity that the model was trained for."""
        return next(row for row in self.rows if row.own)

    def drop(self, row: SweepRow) -> float:
        """Points of accuracy that a row is below the model's own sparsity; negative above it."""
        return 100 * (self.own.top1 - row.top1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [{**dataclasses.asdict(row), "drop": self.drop(row)} for row in self.rows]
        values = {**dataclasses.asdict(self), "source": str(self.source), "rows": rows}
        values["page"] = None if self.page is None else str(self.page)
        if self.picked is not None:
            values["picked"]["folder"] = str(self.picked.folder)
        return {"format": FORMAT, **values}

    def to_table(self) -> list[list[str]]:
        """Heads, then a line of texts for each sparsity."""
        columns = self._columns()
        lines = [[text(row) for text in columns.values()] for row in self.rows]
        return [list(columns), *lines]

    def _columns(self) -> dict[str, Callable[[SweepRow], str]]:
        columns: dict[str, Callable[[SweepRow], str]] = {
            "sparsity": lambda row: row.name + (" *" if row.own else ""),
            "top-1": lambda row: markup.percent(row.top1, 2),
            "drop": lambda row: f"{self.drop(row):.2f}".replace("-", "−"),
            "left": lambda row: markup.count(row.nonzeros),
            "MACs": lambda row: markup.count(row.macs),
            "size": lambda row: markup.size(row.bytes),
        }
        if self.dense is not None:
            columns["time"] = lambda row: _time(row.speed)
            columns["x dense"] = lambda row: _times(row.speed)
        if any(row.int8_top1 is not None for row in self.rows):
            columns["INT8 top-1"] = lambda row: (
                "–" if row.int8_top1 is None else markup.percent(row.int8_top1, 2)
            )
        if any(row.int8_speed is not None for row in self.rows):
            columns["INT8 time"] = lambda row: _time(row.int8_speed)
            columns["INT8 x dense"] = lambda row: _times(row.int8_speed)
        return columns


def _time(speed: Speed | None) -> str:
    return "–" if speed is None else markup.milliseconds(speed.ms)


def _times(speed: Speed | None) -> str:
    return "–" if speed is None else "1" if speed.ratio is None else f"{speed.ratio.median:.2f}"


_VALUES: dict[str, Callable[[SweepResult, SweepRow], float | None]] = {
    "accuracy": lambda _, row: 100 * row.top1,
    "drop": lambda result, row: result.drop(row),
    "sparsity": lambda _, row: row.sparsity,
    "macs": lambda _, row: row.macs,
    "bytes": lambda _, row: row.bytes,
    "ms": lambda _, row: None if row.speed is None else row.speed.ms,
}
"""What a condition can be about."""

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_TEXT = re.compile(r"\s*([A-Za-z_]+)\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*([kMG]?)\s*")


@dataclass(frozen=True)
class Condition:
    """``NAME SIGN NUMBER``: what a row must hold to be chosen.

    NAME is ``accuracy`` (top-1 in percent), ``drop`` (points of accuracy below the model's own
    sparsity), ``sparsity`` (0 to 1), ``macs``, ``bytes`` or ``ms``; SIGN one of ``<``, ``<=``,
    ``>``, ``>=``; NUMBER may end in ``k``, ``M`` or ``G``.

    Attributes:
        name: What it is about.
        sign: How it is compared.
        number: With what.
        text: As it was given.
    """

    name: str
    sign: str
    number: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read one.

        Raises:
            SweepError: With what is allowed.
        """
        found = _TEXT.fullmatch(text)
        names = ", ".join(_VALUES)
        if found is None or found[1] not in _VALUES:
            raise SweepError(
                f"--pick {text!r}: give one condition like drop<0.5, of {names}, then <, <=, > or "
                ">=, then a number, which may end in k, M or G"
            )
        try:
            number = float(found[3]) * _UNITS[found[4]]
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise SweepError(f"--pick {text!r}: {found[3]!r} is no number")
        return cls(found[1], found[2], number, text.strip())

    @property
    def needs_bench(self) -> bool:
        """Whether times must be measured for it."""
        return self.name == "ms"

    def holds(self, result: SweepResult, row: SweepRow) -> bool:
        """Whether a row holds it."""
        value = _VALUES[self.name](result, row)
        return value is not None and _SIGNS[self.sign](value, self.number)

    def pick(self, result: SweepResult) -> SweepRow:
        """The sparsest row that holds it.

        Raises:
            SweepError: When none does, with what is nearest.
        """
        holding = [row for row in result.rows if self.holds(result, row)]
        if holding:
            return max(holding, key=lambda row: row.sparsity)
        raise SweepError(
            f"no sparsity holds {self.text}: {_said(self.name, result)}; give other --sparsity, or "
            "another condition"
        )


def _said(name: str, result: SweepResult) -> str:
    """``accuracy is 71.2 at 50 %, 70.1 at 90 %``."""
    values = [(_VALUES[name](result, row), row) for row in result.rows]
    known = [f"{value:.4g} at {row.name}" for value, row in values if value is not None]
    return f"{name} is {', '.join(known)}"


def check_sparsities(sparsities: Sequence[float]) -> tuple[float, ...]:
    """Sparsities from the least on.

    Raises:
        SweepError: When there is none, one twice, or one outside [0, 1).
    """
    if not sparsities:
        raise SweepError("no sparsity: give some, e.g. --sparsity 0.5,0.8,0.9,0.95")
    for value in sparsities:
        if not 0.0 <= value < 1.0:
            hint = f"; {value:g} % is {value / 100:g}" if 1 < value < 100 else ""
            raise SweepError(
                f"sparsity {value:g}: give shares of weights to prune, 0 or more, below 1{hint}"
            )
    if len(set(sparsities)) < len(sparsities):
        listed = ",".join(f"{value:g}" for value in sparsities)
        raise SweepError(f"sparsities {listed}: give each once")
    return tuple(sorted(sparsities))
