"""Puts on the import path: tests/, so that tests can use tests/runner and tests/hosts, and what has benchmarks/."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
sys.path.append(str(TESTS.parent))
