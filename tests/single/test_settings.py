"""docs/tuning.md says of each setting what the table in csrc/common/settings.cc says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from ringreduce import _core

TUNING = (Path(__file__).resolve().parents[2] / "docs" / "tuning.md").read_text()
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Setting(NamedTuple):
    name: str
    default: str  # "" or "0": chosen later
    allowed: str
    agrees: bool


SETTINGS = [Setting(*row) for row in _core.setting_table()]
OURS = [setting for setting in SETTINGS if setting.name.startswith("RINGREDUCE_")]
# name -> (default, allowed), of the first table in the document
ROWS = {
    name: (default, allowed)
    for name, default, allowed in re.findall(
        r"^\| `(\w+)` \| (.*) \| (.*) \|$", TUNING.partition("| allowed |")[2].partition("\n\n")[0], re.MULTILINE
    )
}


def numbers(text: str) -> set[float]:
    """The numbers in a text, 4K and 1,000 too."""
    text = text.replace("a year", str(365 * 24 * 3600)).replace(",", "")
    return {float(number) * UNITS[unit] for number, unit in re.findall(r"(\d[\d.]*)([KMG]?)\b", text)}


def test_each_setting_is_in_the_document():
    assert len(OURS) > 10
    assert set(ROWS) == {setting.name for setting in OURS}


@pytest.mark.parametrize("setting", OURS, ids=lambda setting: setting.name)
def test_the_document_has_its_default(setting):
    default, _ = ROWS[setting.name]
    if setting.default in ("", "0"):
        assert " " in default  # says how it is chosen
    elif setting.default.replace(".", "").isdigit():
        assert numbers(default) == {float(setting.default)}
    else:
        assert default == f"`{setting.default}`"


@pytest.mark.parametrize("setting", OURS, ids=lambda setting: setting.name)
def test_the_document_has_what_is_allowed(setting):
    _, allowed = ROWS[setting.name]
    if setting.allowed.startswith("one of "):
        assert re.findall(r"`(\w+)`", allowed) == setting.allowed.removeprefix("one of ").split(", ")
    else:
        assert numbers(setting.allowed.replace("with an optional suffix K, M or G", "")) <= numbers(allowed) | {0}


def test_the_document_names_those_that_must_agree():
    sentence = re.search(r"([^.]*?) must be equal on all of them", TUNING)
    assert sentence
    assert set(re.findall(r"`(RINGREDUCE_\w+)`", sentence[1])) == {setting.name for setting in OURS if setting.agrees}
