"""Every error is the package's and the built-in that fits, and survives pickling: workers of a pool send them home."""

from __future__ import annotations

import copy
import pickle

import pytest

from pagedattn import errors

BUILT_INS = {
    errors.ArgumentError: ValueError,
    errors.UnsupportedError: NotImplementedError,
    errors.OutOfBlocksError: MemoryError,
    errors.RenderError: RuntimeError,
    errors.CompileError: RuntimeError,
    errors.NotPrecompiledError: RuntimeError,
    errors.DeviceFault: RuntimeError,
}


def test_no_error_is_left_out() -> None:
    assert set(errors.PagedAttnError.__subclasses__()) == set(BUILT_INS)


@pytest.mark.parametrize(("kind", "built_in"), BUILT_INS.items(), ids=lambda k: k.__name__)
def test_kind_and_pickling(kind: type[errors.PagedAttnError], built_in: type[Exception]) -> None:
    assert issubclass(kind, errors.PagedAttnError)
    assert issubclass(kind, built_in)
    error = kind(3, 1) if kind is errors.OutOfBlocksError else kind("what must hold; what came")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.__dict__ == error.__dict__


def test_out_of_blocks() -> None:
    error = errors.OutOfBlocksError(5, 2)
    assert (error.needed, error.free) == (5, 2)
    assert str(error).startswith("the call needs 5 more blocks and the pool has 2 free; nothing was taken")


def test_compile_error_keeps_the_log() -> None:
    twin = pickle.loads(pickle.dumps(errors.CompileError("line 3", log="all of it")))
    assert (str(twin), twin.log) == ("line 3", "all of it")
