"""What every refused checkpoint has in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from molkv_bundle import MolkvError
from molkv_export import export


def refused(folder: Path, kind: type[MolkvError], message: str) -> None:
    """Expect one line that holds the message, and nothing written."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(kind) as caught:
        export(folder, folder.parent / "bundle")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before  # nothing half-written
