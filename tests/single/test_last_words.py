"""What a rank that goes early says: the exception that ends it, and where the program has raised it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ringreduce as rr
from ringreduce._lifecycle import last_words


def words_of(error: BaseException) -> str:
    try:
        raise error
    except BaseException:
        return last_words.of_this_process()


@pytest.fixture(autouse=True)
def nothing_before(monkeypatch):
    """pytest itself leaves the exceptions of tests that have failed."""
    for name in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, name, raising=False)


def test_nothing_is_wrong():
    assert last_words.of_this_process() == ""


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), rr.RingreduceError("all have it"), GeneratorExit()])
def test_what_is_no_cause(error):
    assert words_of(error) == ""


def test_type_text_and_place():
    line = words_of.__code__.co_firstlineno + 2
    assert words_of(ValueError("no such\n  batch: 7")) == f"ValueError: no such batch: 7 (test_last_words.py:{line})"
    assert words_of(KeyboardInterrupt()) == f"KeyboardInterrupt (test_last_words.py:{line})"
    assert words_of(SystemExit(3)).startswith("SystemExit: 3 (")


@pytest.mark.parametrize("text", ["x" * 9000, "жё" * 400, "\ud800 is no text", "漢字" * 200])
def test_texts_are_cut_to_what_can_be_sent(text):
    words = words_of(ValueError(text))
    assert len(words.encode()) < 400
    assert words.startswith("ValueError: ")
    assert "(test_last_words.py:" in words


def test_a_text_that_fails():
    class Odd(Exception):
        def __str__(self):
            raise KeyError("no text")

    assert words_of(Odd()).startswith("Odd (")


def test_the_place_is_the_program_s_line():
    def wrong():
        rr.allreduce("no tensor")

    try:
        wrong()
    except TypeError:
        assert last_words.of_this_process().endswith(f"(test_last_words.py:{wrong.__code__.co_firstlineno + 1})")


def test_an_exception_that_has_ended_the_program():
    program = """
import atexit
from ringreduce._lifecycle import last_words
atexit.register(lambda: print(repr(last_words.of_this_process()), last_words.of_this_process(ends=True)))
{}["missing"]
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout == "'' KeyError: 'missing' (<string>:5)\n"
