"""`relearn audit`: the label audit on anyone's arrays, in a child, since the daemon's package loads no ML library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon.errors import RelearnError, UsageError


def audit(labels: Path, probabilities: Path) -> dict[str, Any]:
    """What pipeline/flags.py says of them. Raises UsageError where the arrays cannot be used."""
    command = [sys.executable, "-P", "-m", "pipeline.flags", str(labels), str(probabilities)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise UsageError(done.stderr.strip())
    if done.returncode != 0:
        raise RelearnError(f"the audit failed: {done.stderr.strip()[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
