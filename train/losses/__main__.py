"""Writes the table of objectives anew into a document: python -m train.losses docs/methods.md."""

from __future__ import annotations

import sys
from pathlib import Path

from train.losses.catalogue import written

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
