"""Puts tests/ on the import path, so that tests can use tests/runner and tests/hosts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
