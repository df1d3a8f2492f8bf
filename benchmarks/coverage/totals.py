"""Totals over rows, as the goals of the benchmark are put."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

FOLD = ("sparse", "fold zeros", "fold class", "fold keys", "fresh")
PARITY = ("train, seed 0", "train, seed 1", "eval", "batch + 1", "other size", "sparse, batch + 1",
          "sparse, other size", "sparsity")  # fmt: skip


def failed(row: dict[str, Any], among: Iterable[str] = ()) -> list[str]:
    """Names of the checks that failed."""
    checks = row.get("checks", {})
    return [name for name in (among or checks) if checks.get(name) is False]


@dataclass
class Totals:
    """Counts of models, and of their prunable scalars.

    Attributes:
        models: With a row of the stage *convert*.
        refused: Of these, refused with the error that was expected.
        parity: Compute what their originals compute, with and without zeros.
        islands: Are one island.
        keys: Have identical state-dict keys.
        fold: Fold bit-identically.
        low: Below 95 % of their prunable scalars, but for those with a ScriptModule inside.
        sparse: Scalars in sites.
        prunable: Scalars that multiply.
        dense: Exported by torch as they are.
        exported: Of these, exported by us with parity.
        peers: Peer -> (mean share reached, models) of the models that it was tried on.
    """

    models: int = 0
    refused: int = 0
    parity: int = 0
    islands: int = 0
    keys: int = 0
    fold: int = 0
    low: int = 0
    sparse: int = 0
    prunable: int = 0
    dense: int = 0
    exported: int = 0
    peers: dict[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Totals:
        """Over rows of models."""
        total = cls()
        for row in rows:
            if "convert" in row:
                total._convert(row["convert"])
            if "export" in row and row["export"].get("dense"):
                total.dense += 1
                total.exported += row["export"]["ok"]
            prunable = row.get("convert", {}).get("prunable", 0)
            for peer in ("nncf", "torch-pruning"):
                if peer in row and prunable:
                    share = min(1.0, row[peer].get("reached", 0) / prunable)
                    known, count = total.peers.get(peer, (0.0, 0))
                    total.peers[peer] = ((known * count + share) / (count + 1), count + 1)
        return total

    def _convert(self, row: dict[str, Any]) -> None:
        self.models += 1
        if "refused" in row and row["ok"]:
            self.refused += 1
            return
        if "checks" not in row:
            return
        self.parity += not failed(row, PARITY)
        self.islands += row["one_island"]
        self.keys += not failed(row, ("keys",))
        self.fold += not failed(row, FOLD)
        self.sparse += row["sparse"]
        self.prunable += row["prunable"]
        is_scripted = any("ScriptModule" in reason for reason in row["skipped"])
        self.low += row["sparse"] < 0.95 * row["prunable"] and not is_scripted

    def cells(self, peers: Sequence[str]) -> list[str]:
        """This as cells of a table."""
        count = self.models - self.refused

        def of_all(number: int) -> str:
            return f"{number} ({number / count:.1%})" if count else ""

        shares = [self.peers.get(peer, (0.0, 0)) for peer in peers]
        return [
            f"{count}" + (f" + {self.refused} refused" if self.refused else ""),
            of_all(self.parity),
            of_all(self.islands),
            f"{self.sparse / self.prunable:.2%}" if self.prunable else "",
            str(self.low),
            of_all(self.keys),
            of_all(self.fold),
            f"{self.exported} of {self.dense}" if self.dense else "",
            f"{self.exported / self.dense:.1%}" if self.dense else "",
            *(f"{share:.0%} of {n}" if n else "" for share, n in shares),
        ]
