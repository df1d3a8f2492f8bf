"""A report as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable

from st3fx.flops.report import LayerFlops


def to_csv(rows: Iterable[LayerFlops], sparse_macs: int) -> str:
    """One line per layer under a header.

    Args:
        rows: The layers, in the order to write them.
        sparse_macs: Of the whole model: what shares are taken of.
    """
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(LayerFlops)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "sparsity", "share"])
    for row in rows:
        values = {name: getattr(row, name) for name in names}
        values["shape"] = "x".join(map(str, row.shape))
        share = row.sparse_macs / sparse_macs if sparse_macs else 0.0
        writer.writerow([*values.values(), row.sparsity, share])
    return text.getvalue()
