"""All that a random program can do: each do_NAME(variant, batch) writes its lines, or none where it makes no sense."""

from __future__ import annotations

from edits import Edits
from others import Others
from passes import Passes
from steps import Steps


class Actions(Passes, Edits, Steps, Others):
    """A new action is a method here, and its name with a weight in program.py."""
