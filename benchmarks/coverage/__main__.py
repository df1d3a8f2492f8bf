"""Convert models of many libraries, compare each with its original, and print the table.

    python -m benchmarks.coverage                        # all libraries, what has no row yet
    python -m benchmarks.coverage timm --only 'res*'     # these
    python -m benchmarks.coverage --stages export nncf torch-pruning --within 5
    python -m benchmarks.coverage --show                 # the table of the rows that are there

Each stage of each model runs in a child process. A row that is there for the code's last commit is
kept, so a run that was stopped goes on; --missing keeps good rows of other commits too, --again
keeps none.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path
from typing import Any

from benchmarks.coverage import child, libraries, table
from benchmarks.coverage.rows import FOLDER, Rows, commit


def main() -> None:
    """Run what is asked for and print the table."""
    options = _options()
    now = commit()
    wanted = options.libraries or list(libraries.NAMES)
    child.prepare(wanted)
    tables: dict[str, list[dict[str, Any]]] = {}
    for library in wanted:
        rows = Rows(library, options.output)
        if not options.show:
            names = libraries.names(library)
            for name in (n for n in names if any(fnmatch.fnmatch(n, p) for p in options.only)):
                if not _is_quick(rows.get(name, "convert"), options.within):
                    continue
                for stage in options.stages:
                    if not _is_kept(rows.get(name, stage), now, options):
                        row = child.run(library, name, stage, options.timeout, options.memory)
                        rows.put(name, stage, {"commit": now, **row}, names)
                        _report(library, name, stage, row)
        tables[library] = list(rows.models.values())
    table.show(tables, all_rows=not options.totals)


def _is_kept(row: dict[str, Any] | None, now: str, options: argparse.Namespace) -> bool:
    if row is None or options.again:
        return False
    is_good = bool(row.get("ok", "reached" in row))
    return bool(row["commit"] == now or (options.missing and is_good))


def _is_quick(converted: dict[str, Any] | None, within: float | None) -> bool:
    """Whether a model took at most so many seconds to convert; without a limit all are."""
    seconds = (converted or {}).get("seconds")
    return within is None or (seconds is not None and seconds <= within)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("libraries", nargs="*", help=f"of {', '.join(libraries.NAMES)}")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="models, as globs"
    )
    parser.add_argument("--stages", nargs="+", choices=list(child.STAGES), default=["convert"])
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one stage")
    parser.add_argument("--memory", type=float, default=16.0, help="GiB for one stage")
    parser.add_argument("--within", type=float, metavar="SECONDS",
                        help="models alone that were converted within this time")  # fmt: skip
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the rows")
    parser.add_argument(
        "--missing", action="store_true", help="keep good rows of other commits too"
    )
    parser.add_argument("--again", action="store_true", help="keep no row")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--totals", action="store_true", help="print the totals alone")
    options = parser.parse_args()
    unknown = set(options.libraries) - set(libraries.NAMES)
    if unknown:
        parser.error(f"no library {', '.join(sorted(unknown))}: {', '.join(libraries.NAMES)}")
    return options


def _report(library: str, name: str, stage: str, row: dict[str, Any]) -> None:
    said = "" if row.get("ok", "reached" in row) else f"  {row.get('error') or table.notes(row)}"
    print(f"{library} {name} {stage}{said[:200]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
