"""`python cli.py ...` is `molkv-export ...` from a checkout."""

from molkv_export.commands import main

main()
