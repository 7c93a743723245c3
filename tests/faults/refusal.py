"""The check of a refused checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from molkv_bundle import MolkvError
from molkv_export import export


def refused(folder: Path, kind: type[MolkvError], message: str) -> None:
    """Check that an export fails with one line that holds the message, and that it writes nothing."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(kind) as caught:
        export(folder, folder.parent / "bundle")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before  # no partial folder
