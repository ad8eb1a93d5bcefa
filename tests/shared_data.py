"""Where the development data lies; tests that need it skip with a reason when it is absent."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("NEURORECON_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def needs_shared(relative: str) -> pytest.MarkDecorator:
    """A mark that skips a test when `SHARED/relative` is absent."""
    return pytest.mark.skipif(not (SHARED / relative).exists(), reason=f"needs the development data {relative}")
