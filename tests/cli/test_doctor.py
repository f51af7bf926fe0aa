"""`pagedattn doctor`: what works here, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_doctor(home: Path, run) -> None:
    status, out, _ = run("doctor", "--json")
    report = json.loads(out)
    checks = {c["name"]: c for c in report["checks"]}
    assert (status, report["ok"]) == (0, True), report
    assert checks["compile"]["state"] == checks["store"]["state"] == checks["cpu"]["state"] == "ok"
    assert "sm_80" in checks["nvrtc"]["found"]
    assert str(home) in checks["store"]["found"]
    status, out, _ = run("doctor")
    assert status == 0
    assert "attends; within" in out
    assert all(f"({stored})" in out for stored in ("float16", "int8", "int4"))


def test_doctor_finds_what_does_not_work(home: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagedattn import resources

    monkeypatch.setattr("pagedattn.devices.cpu.CpuDevice.run", lambda *_: None)
    monkeypatch.setattr("pagedattn.render.render", lambda _: "syntax error")
    status, out, _ = run("doctor", "--json")
    found = {c["name"]: c["state"] for c in json.loads(out)["checks"]}
    assert resources.folder("templates").is_dir()
    assert (status, found["cpu"], found["compile"]) == (1, "fail", "fail")


def test_doctor_without_a_writable_store(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "file" / "home"))
    _, out, _ = run("doctor", "--json")
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == "store"]
    assert check["state"] == "note"
    assert "PAGEDATTN_HOME" in check["hint"]
