"""Types of command-line arguments: lists with commas."""

from __future__ import annotations

import argparse


def names(text: str) -> list[str]:
    """Words between commas.

    >>> names("int8,int4")
    ['int8', 'int4']
    """
    found = [name for name in text.split(",") if name]
    if not found:
        raise argparse.ArgumentTypeError(f"must name at least one, or be left out; got {text!r}")
    return found


def numbers(text: str) -> list[int]:
    """Integers between commas."""
    try:
        return [int(number) for number in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers such as 64,128; got {text!r}") from None
