"""Proposals of drafts for a target, from its configuration and tokenizer alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from safedraft.core.errors import SafeDraftError
from safedraft.models.causal import causal_config
from safedraft.models.compatibility import check_compatibility
from safedraft.models.description import ModelDescription, read_description
from safedraft.models.doctor import count_or_none
from safedraft.models.fetch import fetch_description
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import DraftCandidate, PairSpec, draft_candidates, pairs
from safedraft.text.reasoning import Thinking, switch_of, thinking_of

LARGEST_SHARE = 0.5
"""Largest number of weights of a proposed draft, as a share of those of the target."""


@dataclass(frozen=True)
class Proposal:
    """A draft for a target."""

    draft: str
    reason: str
    words: tuple[str, ...]
    """Arguments of ``safedraft doctor`` that compare the two."""


@dataclass(frozen=True)
class Proposals:
    """Drafts that are proposed for a target, or why no draft can guard it."""

    target: str
    problems: list[str]
    """Why no draft can guard the target."""
    drafts: list[Proposal]

    def to_dict(self) -> dict[str, Any]:
        """Return the proposals as a dictionary that can be written as JSON."""
        return asdict(self)


def propose_drafts(target: str, report: ReportProgress = silent) -> Proposals:
    """Find drafts for a target: of registered pairs, then of the table of published models.

    Raises:
        SafeDraftError: the target's configuration or tokenizer cannot be fetched or read.
    """
    model = read_description(fetch_description(target, report), target)
    problems = list(_find_problems(model))
    drafts = [_propose_pair(pair) for pair in pairs().values() if pair.target == target]
    drafts += [
        _propose_candidate(target, candidate)
        for candidate in draft_candidates()
        if _is_sibling(candidate, model)
    ]
    return Proposals(target, problems, [] if problems else drafts)


def _find_problems(model: ModelDescription) -> Iterator[str]:
    """Run the checks of a pair with the model as its own draft, and yield what fails."""
    alone = check_compatibility(model, model)
    yield from dict.fromkeys(check.detail for check in alone.checks if check.status == "failure")
    if alone.compatible and _always_thinks(model):
        yield (
            f"{model.name}: replies begin with reasoning that no variable of the chat template "
            "switches off, and drafts are trained to refuse at the beginning of a reply"
        )


def _always_thinks(model: ModelDescription) -> bool:
    if model.tokenizer is None or not model.tokenizer.chat_template:
        return False
    try:
        thinks = thinking_of(model.tokenizer) is not Thinking.OFF
    except SafeDraftError:  # the checks of a pair warn of such a template
        return False
    return thinks and switch_of(model.tokenizer) is None


def _is_sibling(candidate: DraftCandidate, target: ModelDescription) -> bool:
    """Whether the target has the candidate's tokenizer and is enough larger."""
    if causal_config(target.config).model_type not in candidate.model_types:
        return False
    if any(target.tokens.get(id) != token for token, id in candidate.tokens.items()):
        return False
    weights = count_or_none(target)
    return weights is None or candidate.weights * 1e9 <= LARGEST_SHARE * weights


def _propose_pair(pair: PairSpec) -> Proposal:
    adapter = "with an adapter" if pair.adapter else "without an adapter"
    reason = f"of the registered pair {pair.name}, {adapter}"
    return Proposal(pair.draft, reason, ("--pair", pair.name))


def _propose_candidate(target: str, candidate: DraftCandidate) -> Proposal:
    reason = (
        f"{candidate.weights:g} billion parameters, of the family {candidate.family}, "
        f"{candidate.license}, no adapter yet"
    )
    return Proposal(candidate.name, reason, (target, candidate.name, *_template_words(candidate)))


def _template_words(candidate: DraftCandidate) -> Iterator[str]:
    for name, value in candidate.template.items():
        yield from ("--template", f"{name}={_show(value)}")


def _show(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
