"""The architectures of timm that patterns name.

    python -m pipeline.names PATTERN…

prints their names as a JSON list. Exit 2: a pattern names none, standard error says which are near.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from typing import Any

import timm

from policies.job import Outputs, Report, StageError


def find_architectures(patterns: list[str]) -> list[str]:
    """All names that a pattern (with * and ?) matches, each once, in timm's order; without a pattern all of timm's.

    Raises StageError where a pattern is empty or matches nothing, with the nearest names.
    """
    found: dict[str, None] = {}
    for pattern in patterns or ["*"]:
        names = timm.list_models(pattern) if pattern else []
        if not names:
            known = timm.list_models()
            near = difflib.get_close_matches(pattern.strip("*?"), known, n=3, cutoff=0.0)
            raise StageError(f"the architecture = {pattern!r} is not known; nearest: {', '.join(near)}")
        found |= dict.fromkeys(names)
    return list(found)


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: "architectures" that the "patterns" name."""
    return {"architectures": find_architectures(list(inputs["patterns"]))}


def main() -> int:
    try:
        print(json.dumps(find_architectures(sys.argv[1:])))
    except StageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
