"""`make audit`: a finding fails it, an advisory database that is away is said and fails nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
WEAK = {"name": "weak", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}]}
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "unknown", "version": "1.0", "skip_reason": "not found"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "infra" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answering(monkeypatch: pytest.MonkeyPatch, packages: list[dict[str, Any]] | None, error: str = "") -> None:
    """A FAKE pip-audit, since advisories of real packages change from day to day and need a network."""
    said = "" if packages is None else json.dumps({"dependencies": packages})

    def run(command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, said, error)

    monkeypatch.setattr(subprocess, "run", run)


def asked(audit: ModuleType) -> int:
    count: int = audit.pip_audit(Path("requirements.lock"), "osv", 5.0)
    return count


def test_an_advisory_is_a_finding(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    answering(monkeypatch, [WEAK, SOUND])
    assert asked(audit) == 1
    assert "weak 1.0: PYSEC-1, mended in 1.1. NOT ACCEPTED" in capsys.readouterr().out


def test_an_accepted_advisory_is_shown_with_its_reason(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answering(monkeypatch, [WEAK])
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "we never call it")
    assert asked(audit) == 0
    assert "we never call it" in capsys.readouterr().out


def test_silence_is_not_called_health(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    answering(monkeypatch, None, "ConnectionError: nobody there")
    assert asked(audit) == 0
    assert "NOT AUDITED" in capsys.readouterr().err
    answering(monkeypatch, [SOUND, UNKNOWN])
    assert asked(audit) == 0
    assert "does not know 1 of 2 packages" in capsys.readouterr().err


def test_a_weak_line_of_code_is_found_and_our_own_code_has_none(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the real bandit, on the settings of pyproject.toml."""
    pytest.importorskip("bandit", reason="bandit is not installed")
    monkeypatch.setattr(audit, "CODE", ("infra", "components"))
    assert audit.bandit() == 0
    (tmp_path / "weak.py").write_text("import hashlib\nhashlib.md5(b'')\nimport pickle\npickle.loads(b'')\n")
    monkeypatch.setattr(audit, "CODE", (str(tmp_path),))
    assert audit.bandit() >= 2
