"""Known weaknesses of the pinned packages, and of our own code: `make audit`. Exit code 1 for a finding.

bandit reads the code and needs no network. pip-audit asks an advisory database about every pin of requirements.lock;
where nobody answers, nothing is known, which is said and fails nothing: an outage elsewhere must not stop a merge.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("kiwi", "components", "pipelines", "infra", "benchmarks")
ACCEPTED: dict[str, str] = {}
"""Advisories that do not concern us, by id, each with the reason (docs/security.md)."""


def bandit() -> int:
    """The number of findings in the code; 0 is printed with what was read."""
    command = [sys.executable, "-m", "bandit", "-q", "-r", *CODE, "-c", "pyproject.toml", "-f", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        said = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"audit: bandit did not run: {(done.stderr or done.stdout).strip()[-500:]}")
    for error in said["errors"]:
        print(f"bandit could not read {error['filename']}: {error['reason']}")
    for found in said["results"]:
        where = f"{found['filename']}:{found['line_number']}"
        print(f"{where}: {found['test_id']} {found['issue_text']} ({found['issue_severity'].lower()})")
    whole = said["metrics"]["_totals"]
    print(
        f"bandit: {len(said['results'])} findings in {whole['loc']} lines; {whole['skipped_tests']} explained in place"
    )
    return len(said["results"]) + len(said["errors"])


def pip_audit(lock: Path, service: str, seconds: float) -> int:
    """The number of advisories that are not accepted. What could not be asked about is counted and printed."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "--no-deps", "--disable-pip", "-f", "json"]
    command += ["--progress-spinner", "off", "-s", service, "--timeout", "10"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return _unknown(f"{service} did not answer within {seconds:g} s")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return _unknown((done.stderr.strip().splitlines() or ["no answer"])[-1][-300:])
    asked = [package for package in packages if "skip_reason" not in package]
    found = [(package, advisory) for package in asked for advisory in package["vulns"]]
    count = 0
    for package, advisory in found:
        names = {advisory["id"], *advisory.get("aliases", ())}
        reason = next((ACCEPTED[name] for name in sorted(names) if name in ACCEPTED), "")
        count += not reason
        fixed = ", ".join(advisory["fix_versions"]) or "none yet"
        print(
            f"{package['name']} {package['version']}: {advisory['id']}, mended in {fixed}. {reason or 'NOT ACCEPTED'}"
        )
    if len(asked) < len(packages):
        _unknown(f"{service} does not know {len(packages) - len(asked)} of {len(packages)} packages")
    print(f"pip-audit: {count} advisories to mend, {len(found) - count} accepted, {len(asked)} packages asked about")
    return count


def _unknown(why: str) -> int:
    print(f"pip-audit: NOT AUDITED, and nothing is known of these packages: {why}", file=sys.stderr)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--service", default="osv", choices=("osv", "pypi"), help="osv asks no package registry")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all answers together")
    said = parser.parse_args()
    findings = bandit() + pip_audit(said.lock, said.service, said.seconds)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
