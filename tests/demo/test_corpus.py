"""The training text: what is read, what is left out, and a split that no machine changes."""

from __future__ import annotations

from pathlib import Path

from pagedattn.demo import corpus
from pagedattn.demo.model import END


def test_only_the_library_s_own_sources(tmp_path: Path) -> None:
    kept = {"abc.py": "x = 1\r\ny = 2\n", "json/decoder.py": "import re\n"}
    left_out = {
        "site-packages/numpy/linalg.py": "no",
        "test/test_abc.py": "no",
        "ctypes/test/test_array.py": "no",
        "encodings/cp437.py": "no",
        "config-3.12-x86_64-linux-gnu/python-config.py": "no",
        "_sysconfigdata__linux_x86_64-linux-gnu.py": "no",
        "empty.py": "\n",
        "zero.py": "a\0b",
        "notes.txt": "no",
    }
    for name, text in {**kept, **left_out}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "latin.py").write_bytes(b"# \xe9t\xe9\n")
    sources = {name: text for name, text in corpus.documents(tmp_path) if not name.startswith("topics/")}
    assert sources == {"abc.py": b"x = 1\ny = 2\n", "json/decoder.py": b"import re\n"}


def test_the_running_python_carries_enough() -> None:
    training, held_out = corpus.read()
    assert len(training) > 5_000_000
    assert 0.01 < len(held_out) / len(training) < 0.1
    assert training[0] == held_out[0] == END


def test_the_split_depends_on_names_alone() -> None:
    # by these names the weights were trained; another split would put training text into the measurement
    assert [name for name in ("traceback.py", "sched.py", "topics/types", "os.py", "topics/with") if corpus.is_held_out(name)] == [
        "traceback.py",
        "sched.py",
        "topics/types",
    ]
