"""The findings as text, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ringreduce.doctor.check import FAILED, Check


def as_json(facts: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]], checks: Sequence[Check]) -> str:
    """One document: "ok", "checks", "ranks", and a part for each kind of fact."""
    document = {
        "ok": works(checks),
        "checks": [check._asdict() for check in checks],
        "ranks": list(ranks),
        **facts,
    }
    return json.dumps(document, indent=1)


def as_text(facts: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]], checks: Sequence[Check]) -> str:
    """Sections of lines, the checks last."""
    lines = []
    for title, section in facts.items():
        lines += [title, *_rows(section), ""]
    if ranks:
        lines += ["ranks", *_rows({f"rank {number}": _rank(rank) for number, rank in enumerate(ranks)}), ""]
    lines += ["checks", *_rows({check.name: f"{check.status:<8} {check.text}".rstrip() for check in checks}), ""]
    failed = [check.name for check in checks if check.status == FAILED]
    lines.append("All works." if not failed else f"Does not work: {', '.join(failed)}.")
    return "\n".join(lines)


def works(checks: Sequence[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.status != FAILED for check in checks)


def _rank(rank: Mapping[str, Any]) -> str:
    return f"{rank['host']}, process {rank['pid']}, {len(rank['cores'])} core(s)"


def _rows(section: Mapping[str, Any]) -> list[str]:
    width = max((len(name) for name in section), default=0)
    return [f"  {name:<{width}}  {value}".rstrip() for name, value in section.items()]
