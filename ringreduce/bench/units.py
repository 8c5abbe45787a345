"""Sizes, times, rates and ratios, to and from text."""

from __future__ import annotations

import re

_POWERS = {"": 0, "K": 10, "M": 20, "G": 30}


def parse_size(text: str) -> int:
    """Bytes: "4", "16K", "1M", "2G", "64MiB". ValueError for anything else, and for 0."""
    found = re.fullmatch(r"([1-9]\d*)([KMG]?)(I?B)?", text.strip().upper())
    if not found:
        raise ValueError(f"{text.strip()!r} is not a size; write bytes such as 4, 16K, 1M or 2G")
    return int(found[1]) << _POWERS[found[2]]


def parse_sizes(text: str) -> list[int]:
    """Sizes with commas between them, ascending and each once."""
    return sorted({parse_size(part) for part in text.split(",")})


def parse_rate(text: str) -> float:
    """A link's rate in bytes/s: "1gbit", "100mbit", "10G" (as tc and iperf3 write bits/s)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])(?:bit)?(?:/s)?", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text.strip()!r} is not a rate; write bits per second such as 100mbit, 1gbit or 10G")
    return float(found[1]) * float(10 ** {"k": 3, "m": 6, "g": 9}[found[2]]) / 8


def show_size(nbytes: int) -> str:
    """The shortest exact form: 16K, 1M, 1000."""
    for unit, power in reversed(_POWERS.items()):
        if nbytes % (1 << power) == 0:
            return f"{nbytes >> power}{unit}"
    raise AssertionError("every number is a multiple of 1")


def show_time(seconds: float) -> str:
    """Three digits: 4.21 us, 33.5 ms, 1.20 s."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        value = seconds / scale
        if value < 999.5 or unit == "s":
            return f"{value:.{_decimals(value)}f} {unit}"
    raise AssertionError("seconds are the last unit")


def show_number(value: float) -> str:
    """Three digits, no more than three decimals."""
    return f"{value:.{min(_decimals(value), 3)}f}"


def _decimals(value: float) -> int:
    return 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
