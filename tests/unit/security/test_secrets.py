"""No secret's value in what is compiled, committed or configured; what a whole run leaves: tests/integration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kiwi.tracking.redaction import LOOKS_SECRET

ROOT = Path(__file__).resolve().parents[3]
VALUES = {
    "AWS_SECRET_ACCESS_KEY": "compiled-secret-of-s3",
    "AWS_ACCESS_KEY_ID": "compiled-id-of-s3",
    "MLFLOW_TRACKING_PASSWORD": "compiled-password",
    "HF_TOKEN": "compiled-token",
    "KIWI_REGISTRY_URL": "postgresql://kiwi:compiled-database@db/kiwi",
    "KIWI_ALERT_URL": "https://hooks.example/compiled-hook",
    "KIWI_VLM_SCORE_API_KEY": "compiled-key",
}
KEYS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\bhf_[A-Za-z0-9]{30,}|\bghp_[A-Za-z0-9]{30,}"
    r"|xox[bp]-[0-9A-Za-z-]{20,}|hooks\.slack\.com/services/T[0-9A-Z]{8,}/B"
)


def test_a_specification_names_secrets_and_holds_no_value(tmp_path: Path) -> None:
    out = tmp_path / "pipeline.yaml"
    command = [sys.executable, "-m", "kiwi", "pipeline", "compile", "end_to_end", "--profile", "prod"]
    command += ["--image", "registry.example/kiwi:0123456789abcdef", "--out", str(out)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KIWI_")}
    done = subprocess.run(command, env={**kept, **VALUES}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = out.read_text() + done.stdout + done.stderr
    assert "kiwi-s3" in said
    assert [name for name, value in VALUES.items() if value in said] == []
    assert "compiled-database" not in said


def test_no_key_is_committed() -> None:
    """Also in what is not committed yet, such as images' files: everything that git would take."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    assert "infra/profiles/prod.yaml" in names
    found = []
    for name in names:
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            found += [(name, match) for match in KEYS.findall(path.read_text(errors="replace"))]
    assert found == []


def test_images_are_given_no_secret() -> None:
    """A build argument or a variable stays in the image's history for everybody who can pull it."""
    text = (ROOT / "infra" / "images" / "Dockerfile").read_text()
    named = re.findall(r"^\s*(?:ARG|ENV)\s+([A-Z_]+)", text, re.MULTILINE)
    assert named
    assert not [name for name in named if re.search(r"TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL", name)]
    assert not any(pattern.search(text) for pattern, _ in LOOKS_SECRET)


def test_manifests_take_passwords_from_secrets_alone() -> None:
    import yaml

    found = []
    for path in (ROOT / "infra" / "k8s").rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            found += [(path.name, name) for name in _written_down(document)]
    assert found == []


def _written_down(value: object) -> list[str]:
    """Names of variables that sound like secrets and have their value beside them; objects of kind Secret."""
    if isinstance(value, list):
        return [name for item in value for name in _written_down(item)]
    if not isinstance(value, dict):
        return []
    own = ["Secret"] if value.get("kind") == "Secret" and (value.get("data") or value.get("stringData")) else []
    name = value.get("name")
    if isinstance(name, str) and "value" in value and re.search(r"PASSWORD|TOKEN|SECRET|API_KEY", name):
        own.append(name)
    return own + [name for item in value.values() for name in _written_down(item)]


def test_a_value_written_into_a_manifest_would_be_found() -> None:
    assert _written_down({"spec": [{"env": [{"name": "DB_PASSWORD", "value": "x"}]}]}) == ["DB_PASSWORD"]
    assert _written_down({"env": [{"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {}}}]}) == []
