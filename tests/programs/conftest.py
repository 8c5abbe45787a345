"""What tests of installing share."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner.source_tree import copy_sources


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, to install from."""
    copy = tmp_path_factory.mktemp("source")
    copy_sources(copy)
    return copy
