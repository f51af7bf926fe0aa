"""What the demo asks its model to continue: code and prose of different lengths, and one prompt to be continued three times."""

from __future__ import annotations

from pagedattn.demo.generate import Request

_FUNCTION = '''\
import os
import sys


def read_options(path, encoding="utf-8"):
    """Return the options of a configuration file as a dictionary.

    Empty lines and lines that start with "#" are ignored.
    """
    options = {}
    with open(path, encoding=encoding) as file:
'''

_CLASS = '''\
"""A queue for threads that produce work and threads that do it."""

import threading
from collections import deque

__all__ = ["Empty", "WorkQueue"]


class Empty(Exception):
    """Raised by WorkQueue.get() when there is no item."""


class WorkQueue:
    """A first-in, first-out queue.

    If maxsize is greater than zero, put() waits until there is room for
    the new item.  Items may be of any type.
    """

    def __init__(self, maxsize=0):
        self.maxsize = maxsize
        self.items = deque()
        self.lock = threading.Lock()
        self.not_empty = threading.Condition(self.lock)

    def '''

_PROSE = """\
Iterators and generators
************************

An object is called iterable if it can return its elements one at a
time.  When an iterable is used in a "for" statement, the method
"__iter__()" is called first.  The object that it returns is an
"""

_FORKED = '''\
import unittest


class DateTest(unittest.TestCase):
    """Tests for the functions that compare two dates."""

    def setUp(self):
        self.first = date(2000, 1, 31)
        self.second = date(2000, 2, 29)

    def test_'''

REQUESTS = (
    Request("a function", _FUNCTION.encode()),
    Request("a class", _CLASS.encode()),
    Request("a page of prose", _PROSE.encode()),
    Request("a shared prefix", _FORKED.encode(), samples=3),
)
