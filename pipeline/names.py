"""The names that timm knows: architectures, which patterns name, and optimizers.

    python -m pipeline.names PATTERN…

prints the architectures as a JSON list. Exit 2: a pattern names none, standard error says which are near.

    python -m pipeline.names --check KEY=NAME…

prints, as a JSON list, [KEY, what is wrong] of each setting whose name timm does not know.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.optim._optim_factory import list_optimizers

from pipeline.settings import check_name
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


def find_faults(settings: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Key, and what is wrong, of each setting that names an architecture or an optimizer that there is not."""
    optimizers: list[Any] = list_optimizers()
    faults = []
    for key, name in settings:
        try:
            if "optimizer" in key:
                check_name("the optimizer", name, optimizers)
            else:
                find_architectures([name])
        except StageError as error:
            faults.append((key, str(error)))
    return faults


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: "architectures" that the "patterns" name."""
    return {"architectures": find_architectures(list(inputs["patterns"]))}


def main() -> int:
    if sys.argv[1:2] == ["--check"]:
        pairs = [argument.partition("=") for argument in sys.argv[2:]]
        print(json.dumps(find_faults([(key, name) for key, _, name in pairs])))
        return 0
    try:
        print(json.dumps(find_architectures(sys.argv[1:])))
    except StageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
