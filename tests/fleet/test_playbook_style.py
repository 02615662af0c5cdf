"""The playbooks and roles have no finding in ansible-lint's production profile."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_there_is_no_finding_in_the_production_profile(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    linted = subprocess.run(
        [programs / "ansible-lint", "--nocolor", "--profile", "production", "playbooks", "roles"],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "playbooks" / "ansible.cfg"),
            "ANSIBLE_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "Passed: 0 failure(s), 0 warning(s)" in linted.stderr, linted.stderr
