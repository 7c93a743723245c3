"""`python cli.py ...` is `molkv-export ...` from a checkout."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent / "runtimes" / "python"))  # beside the checkout's molkv_export

from molkv_export.commands import main

main()
