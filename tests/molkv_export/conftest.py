"""Fixtures of the exporter's tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def token_ids() -> np.ndarray:
    """As many random token ids as the small models have context."""
    return np.random.default_rng(7).integers(0, 97, 48)
