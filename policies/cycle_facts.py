"""What is known in a running cycle, for the policy that names its next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.facts import Candidate, Requirement, Verdict
from policies.search import SearchFacts
from policies.tuning import TuningFacts

Trigger = Literal["data", "constraints", "stock", "asked", "adopt", "proof"]


@dataclass(frozen=True, slots=True)
class CycleFacts:
    """What is known in a cycle. Candidates are those that the target could serve: its input size, all its classes."""

    trigger: Trigger
    requirement: Requirement
    snapshot: str
    architectures: tuple[str, ...]  # in the order of config.toml
    candidates: tuple[Candidate, ...]
    variants: tuple[str, ...] = ("onnxruntime:fp32",)  # engines and precisions that the target could take
    unbuilt: tuple[tuple[str, str], ...] = ()  # model and variant that there is no artifact of yet
    refused: Mapping[str, str] = field(default_factory=dict)  # build step -> why it came to nothing
    unbuildable: Mapping[str, str] = field(default_factory=dict)  # architecture that nothing could be built of -> why
    unanswered: Mapping[str, str] = field(default_factory=dict)  # artifact that could not be proven or measured -> why
    built: frozenset[str] = frozenset()  # artifacts, in this cycle
    stored: frozenset[str] = frozenset()  # models whose folders are there
    fresh: frozenset[str] = frozenset()  # models of this snapshot and these settings
    trained: tuple[str, ...] = ()  # architectures that have a model of this snapshot and recipe
    too_large: Mapping[str, str] = field(default_factory=dict)  # architecture -> why, found before training it
    champion: str | None = None  # artifact
    champion_feasible: bool = False  # as far as it is measured and proven
    measured: frozenset[str] = frozenset()  # artifacts that were, in this cycle
    measured_longer: frozenset[str] = frozenset()  # artifacts that were once more in this cycle, or could not be
    rivals: tuple[str, ...] = ()  # champion and anchor, where they lack answers to the judge set as it is now
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # artifact -> what was said in this cycle
    about: str | None = None  # the artifact that a person asked about, with the trigger "asked"
    unapproved: frozenset[str] = frozenset()  # artifacts whose verdict of this cycle is for a person to approve
    declined: Mapping[str, str] = field(default_factory=dict)  # artifact that people do not want served -> who and when
    promoted: str | None = None  # artifact, in this cycle
    failed: Mapping[str, str] = field(default_factory=dict)  # step -> last words, once its attempts are used up
    tuning: TuningFacts = field(default_factory=TuningFacts)
    search: SearchFacts = field(default_factory=SearchFacts)
