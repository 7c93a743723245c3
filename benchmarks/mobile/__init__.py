"""What docs/mobile.md shows: static profiles on every compiler that runs here."""
