"""Lists what scripts/bench measures, in order, and formats the results."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import bench_chain
import bench_gasless
import bench_gate
import bench_gateway
import bench_ledger
import bench_parts
import bench_peers
import bench_strangers
import bench_wallet
from bench_samples import Row, Run
from mpp_session.process.gc_tuning import collect_seldom

__all__ = ["main"]

Group = Callable[[Run], AsyncIterator[Row]]
GROUPS: Final[dict[str, Group]] = {
    "parts": bench_parts.rows,
    "peers": bench_peers.rows,
    "memory": bench_ledger.memory_rows,
    "sqlite": bench_ledger.sqlite_rows,
    "postgresql": bench_ledger.postgres_rows,
    "wallet": bench_wallet.wallet_rows,
    "channels": bench_ledger.channel_rows,
    "gate": bench_gate.gate_rows,
    "flood": bench_gate.flood_rows,
    "stream": bench_gate.stream_rows,
    "proxy": bench_gateway.gateway_rows,
    "strangers": bench_strangers.stranger_rows,
    "chain": bench_chain.chain_rows,
    "gasless": bench_gasless.gasless_rows,
}
COLUMNS: Final = ("what", "median", "min", "max", "unit", "ratio", "goal", "besides")
TEXTS: Final = {"what", "unit", "besides"}


def main() -> None:
    """Run the requested groups, and print the results."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--markdown", action="store_true", help="print the table of docs/engineering/performance.md"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--only", metavar="WORD", default="", help="only groups named like this")
    options = parser.parse_args()
    chosen = [name for name in GROUPS if options.only in name]
    if not chosen:
        parser.error(f"no group is named like {options.only!r}: {', '.join(GROUPS)}")
    rows = asyncio.run(_measure(chosen, is_quick=options.quick))
    if options.json:
        print(json.dumps({"rows": [row.as_json() for row in rows]}, indent=2))
    elif options.markdown:
        _print_markdown(rows)
    else:
        _print_table(rows)


async def _measure(chosen: list[str], *, is_quick: bool) -> list[Row]:
    found: list[Row] = []
    # On the checkout's own disk: a temporary directory may be memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent.parent, prefix=".bench-") as folder:
        run = Run(folder=Path(folder), is_quick=is_quick)
        collect_seldom()  # as a gateway does
        for name in chosen:
            async for row in GROUPS[name](run):
                print(f"{name}: {row.name}", file=sys.stderr, flush=True)
                found.append(row)
    return found


def _print_markdown(rows: list[Row]) -> None:
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join("---" if column in TEXTS else "---:" for column in COLUMNS), "|")
    for row in rows:
        print("|", " | ".join(row.as_cells()), "|")


def _print_table(rows: list[Row]) -> None:
    table = Table()
    for column in COLUMNS:
        is_text = column in TEXTS
        table.add_column(
            column, justify="left" if is_text else "right", no_wrap=column != "besides"
        )
    for row in rows:
        table.add_row(*map(escape, row.as_cells()))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
