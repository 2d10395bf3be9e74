"""Start-up of the command line against a bare `import typer`: paired child processes, medians, the ratio.

python benchmarks/startup.py [--pairs 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    ours = "import sys; sys.argv = ['factory', '--help']; from factory.cli import main; main()"
    bare = "import typer"
    imported = "import factory.cli"
    seconds(ours), seconds(bare), seconds(imported)
    rows = [(seconds(ours), seconds(imported), seconds(bare)) for _ in range(pairs)]
    for name, index in (("factory --help", 0), ("import factory.cli", 1), ("import typer", 2)):
        median = statistics.median(row[index] for row in rows)
        ratio = statistics.median(row[index] / row[2] for row in rows)
        print(f"{name:<20} {median * 1e3:6.0f} ms   {ratio:.2f} x import typer")
    print(f"medians of {pairs} paired runs")


if __name__ == "__main__":
    main()
