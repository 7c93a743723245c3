"""Run the command line from a clone without installation: `python cli.py ...` works like `molkv-export ...`."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent / "runtimes" / "python"))  # index 0 is this folder, with molkv_export

from molkv_export.commands import main

main()
