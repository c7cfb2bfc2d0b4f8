"""The child that runs this package's stages: `python -P -m deploy JOB.json`.

Exit 0: all went well; 1: not.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.lifeline import die_with_parent
from policies.facts import Job, from_dict
from policies.job import Outputs, Report, Stage, run_stages

STAGES = ("build", "prove", "measure")


def find_stage(name: str) -> Stage:
    """The stage's function; its module, and what that needs, is imported when it runs."""

    def stage(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
        outputs: Outputs = importlib.import_module(f"deploy.{name}").run(inputs, earlier, report)
        return outputs

    return stage


def main() -> int:
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no line of the protocol
    job = from_dict(Job, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    went_well = run_stages(job, {name: find_stage(name) for name in STAGES}, lambda line: print(line, file=protocol))
    return 0 if went_well else 1


if __name__ == "__main__":
    sys.exit(main())
