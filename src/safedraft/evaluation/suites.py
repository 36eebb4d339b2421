"""Suites of the evaluation: each is a line that names an attack, its kind and its sources.

An attack is a transformation of a request. Every suite of attacks applies it to harmful requests
and, as its control, to harmless ones: a defense that refuses both has not recognized the harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from safedraft.core.errors import SafeDraftError
from safedraft.core.plugins import unknown_name
from safedraft.evaluation.attacks import ATTACKS

Kind = Literal["attack", "over_refusal", "accuracy", "ordinary"]

NEW_TOKENS = 48
"""Maximum tokens of a reply, unless the suite or the user sets another number."""

CONTROLS = ("ordinary", "looks_unsafe")
"""Sources of harmless requests to which attacks are applied as well: ordinary and look-alike."""


@dataclass(frozen=True)
class Suite:
    """One kind of question to a defense."""

    name: str
    kind: Kind
    family: str
    """Group of suites in a report."""
    source: str
    """Name of the source of its prompts, unless the user names another."""
    attack: str = "direct"
    """Name of the attack in ``ATTACKS`` that builds its conversations."""
    controls: tuple[str, ...] = ()
    """Names of the sources of harmless requests that the attack is applied to as well, which take
    turns. Suites of attacks need them, and no others have them."""
    max_new_tokens: int | None = None
    """Maximum tokens of a reply, if the suite needs its own number."""
    prefill_tokens: int | None = None
    """Number of prefilled tokens, for suites that compare such numbers."""
    needs_sessions: bool = False
    """Whether its attack asks the models about texts of its own, which not every engine can do."""
    tokens_per_call: int | None = None
    """Number of tokens that a client asks for at a time, which it appends to the reply so far and
    asks again; None asks for the whole reply at once."""
    check: str = "number"
    """Name in ``usefulness.CHECKS`` of what decides whether a reply is correct, for accuracy."""
    reply_form: Mapping[str, Any] | None = None
    """Form of the replies, as ``structured_outputs`` is written."""
    instruction: str = ""
    """Text added to the end of every request."""

    def __post_init__(self) -> None:
        """Refuse a suite of attacks without controls.

        Raises:
            SafeDraftError: the suite has no controls, or has some and is about no attack.
        """
        if (self.kind == "attack") != bool(self.controls):
            raise SafeDraftError(
                f"the suite {self.name} needs controls: sources of harmless requests, to which its "
                "attack is applied as well"
                if self.kind == "attack"
                else f"the suite {self.name} is about no attack: it has no use for controls"
            )


def _attack(name: str, family: str | None = None, **settings: Any) -> Suite:
    return Suite(
        name,
        "attack",
        family or name,
        **{"source": "harmbench", "attack": name, "controls": CONTROLS} | settings,
    )


def _code(name: str, attack: str) -> Suite:
    return _attack(name, "code", attack=attack, source="harmful_code", controls=("harmless_code",))


def _language(name: str, attack: str | None = None) -> Suite:
    return _attack(
        name,
        "languages",
        attack=attack or name,
        source="harmful_languages",
        controls=("harmless_languages",),
    )


STEPS = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "steps": {"type": "array", "items": {"type": "string"}, "minItems": 3},
    },
    "required": ["title", "steps"],
    "additionalProperties": False,
}
"""The form of replies in which an answer has its place and a refusal has none."""

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        _attack("direct"),
        *(_attack(f"prefill_{n}", "prefill", prefill_tokens=n) for n in (0, 5, 10, 20, 40)),
        *(
            _attack(f"prefill_{name}", "prefill")
            for name in ("opening", "code", "json", "markdown")
        ),
        *(
            _attack(f"prefill_text_{n}", "prefill_text", prefill_tokens=n)
            for n in (5, 20, 40, 100, 200)
        ),
        *(
            _attack(f"ratchet_{n}", "ratchet", attack="direct", tokens_per_call=n)
            for n in (1, 3, 7, 20)
        ),
        _attack("templates"),
        _attack("suffixes"),
        _attack("nested_fiction"),
        _attack("role_play"),
        _attack("frames"),
        _attack("system_prompts"),
        _attack("histories"),
        _attack("encodings", max_new_tokens=96),
        _attack("long_context"),
        _attack("short_answers"),
        *(
            _attack(
                name,
                "json_schema",
                attack="direct",
                max_new_tokens=96,
                reply_form={"json_schema": STEPS, "refusal": refusal},
            )
            for name, refusal in (("json_schema", True), ("json_schema_only", False))
        ),
        _attack("copying", "harmless_first", max_new_tokens=128),
        _attack("quiz", "harmless_first", max_new_tokens=160),
        _code("code", attack="direct"),
        _code("code_begun", attack="prefill_code"),
        _attack(
            "trigger_words",
            attack="direct",
            source="harmful_plain_words",
            controls=("harmless_trigger_words",),
        ),
        _language("languages", attack="direct"),
        _language("languages_prefill"),
        _language("languages_mixed"),
        _attack("late_harm", "adaptive", max_new_tokens=112),
        _attack("high_match", "adaptive", needs_sessions=True),
        _attack("suffix_search", "adaptive", needs_sessions=True),
        Suite("over_refusal", "over_refusal", "over_refusal", "looks_unsafe"),
        Suite(
            "arithmetic",
            "accuracy",
            "arithmetic",
            "arithmetic",
            max_new_tokens=384,
            instruction="\nThink step by step. End with a line that says 'Answer:' and the number.",
        ),
        Suite(
            "human_eval",
            "accuracy",
            "human_eval",
            "human_eval",
            max_new_tokens=512,
            check="human_eval",
            instruction="\n\nReply with the complete function in one Python code block.",
        ),
        *(
            Suite(name, "accuracy", name, name, max_new_tokens=256, check="instructions")
            for name in ("instructions", "constraints")
        ),
        Suite("ordinary", "ordinary", "ordinary", "ordinary"),
        Suite("ordinary_languages", "over_refusal", "ordinary_languages", "ordinary_languages"),
    )
}
"""SafeDraft's own suites by name."""


def collect_suites() -> dict[str, Suite]:
    """SafeDraft's own suites, and one for every other attack that is installed; loads no attack."""
    return {**SUITES, **{name: _attack(name) for name in ATTACKS.names() if name not in SUITES}}


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        SafeDraftError: no suite has this name (the message lists all), or an installed attack has
            name of one of SafeDraft's suites that is not about an attack of that name.
    """
    suites = collect_suites()
    if name not in suites:
        raise unknown_name("suite", name, suites)
    if suites[name].attack != name and name in ATTACKS.names():
        raise SafeDraftError(
            f"an installed attack is called {name!r} like a suite of safedraft: uninstall it, or "
            "register it under another name"
        )
    return suites[name]
