"""The public names have types that a strict checker follows from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import safedraft

CODE = Path(__file__).parent / "typing" / "user_code.py"


def test_the_users_code_has_every_public_name() -> None:
    used = set(re.findall(r"safedraft\.(\w+)", CODE.read_text("utf-8")))
    assert used == {*safedraft.__all__, "__version__"}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mistake", [None, "pair.generate('hi', max_token=1)"])
def test_a_users_code_checks_strictly(tmp_path: Path, mistake: str | None) -> None:
    file = tmp_path / "user_code.py"
    code = CODE.read_text().replace(
        "    return reply", f"    {mistake or 'pass'}\n    return reply"
    )
    file.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (checked.returncode == 0) is (mistake is None), checked.stdout
    assert ('"max_token"' in checked.stdout) is (mistake is not None), checked.stdout
