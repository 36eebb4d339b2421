"""Every constant of the method and of sampling, with its symbol in the paper (arXiv 2508.17739)."""
# Long because: the constants share their types, their errors and their names in other libraries.

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from safedraft.core.errors import PromptTooLongError, SafeDraftError, refuse_invalid, show_value
from safedraft.core.options import translate

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class Scheme(StrEnum):
    """The sample space in which a position is decided (Section 4.2)."""

    INTERSECTION = "intersection"
    UNION = "union"


Natural = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
MOST_NODES = 255
"""Maximum number of nodes, the root included, for which ``draft_tree`` names children."""
OF_CHAINS: Mapping[str, Any] = {
    "draft_tree": (),
    "draft_tree_threshold": 1.0,
    "draft_tree_stop": 0.0,
}
"""Constants with which every block is a chain."""
Strength = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Repetition = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _OneLineErrors(ModelMetaclass):
    """Lets a constructor raise what a user can read; validation inside Pydantic is not changed."""

    if not TYPE_CHECKING:  # a type checker is to see the constructor's own parameters

        def __call__(cls, *arguments, **values):
            if arguments:
                raise SafeDraftError(f"{cls.__name__} takes its values by their names")
            with refuse_invalid(shown=True):
                return super().__call__(**values)


def hash_values(values: BaseModel) -> int:
    """Hash immutable values; equal ones have one hash, also where fields are mappings or lists."""
    return hash((type(values), _freeze(dict(values))))


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((name, _freeze(item)) for name, item in value.items())
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


_ConstantsT = TypeVar("_ConstantsT", bound="Constants")


class Constants(BaseModel, metaclass=_OneLineErrors):
    """Immutable, validated values; unknown names are refused.

    The constructor raises ``SafeDraftError`` for what it refuses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    __hash__ = hash_values

    def replace(self, /, **constants: Any) -> Self:
        """Return these constants with some of them replaced, validated as a whole.

        ``model_fields_set`` of the result holds exactly the names that were replaced.

        Raises:
            SafeDraftError: an unknown name, or a value outside its range.
        """
        with refuse_invalid(shown=True):
            changed = self.model_validate({**self.model_dump(), **constants})
        return self.model_construct(_fields_set=set(constants), **dict(changed))

    def convert_to(self, kind: type[_ConstantsT], /, **constants: Any) -> _ConstantsT:
        """Return constants of another kind, such as those of a rule.

        A field of ``kind`` has the value that ``constants`` or else these constants have for its
        name, or else its default. Names that ``kind`` does not have are left out.

        Raises:
            SafeDraftError: a value is missing or outside its range.
        """
        if type(self) is kind and not constants:
            return self
        values = self.model_dump() | constants
        return kind(**{name: value for name, value in values.items() if name in kind.model_fields})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with the values of ``update``, validated as in ``replace``.

        Raises:
            SafeDraftError: an unknown name, or a value outside its range.
        """
        return self.replace(**update) if update else super().model_copy(deep=deep)

    if not TYPE_CHECKING:  # a type checker refuses the assignment itself

        def __setattr__(self, name: str, value: Any) -> None:
            """Refuse a change.

            Raises:
                SafeDraftError: always.
            """
            raise SafeDraftError(
                f"{name} cannot be changed: make a copy with replace({name}={show_value(value)})"
            )


class NoConstants(Constants):
    """The constants of a rule that has none."""


def _split_tree(value: Any) -> Any:
    if value in ("", "none"):
        return ()
    if isinstance(value, str):
        parts = value.split("-")
        return tuple(int(part) if part.isdecimal() and len(part) < 20 else part for part in parts)
    return (value,) if isinstance(value, int) else value


def show_constant(value: object) -> str:
    """Format a constant as on the command line; a tree is ``2-1-0-1``, or ``none``."""
    return "-".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


class DraftingConfig(Constants):
    """Constants of drafting: they change the speed, and under SSD no token.

    Under ``speculative``, ``sequoia`` and ``ensemble_weight`` they may change sampled tokens, but
    never the distribution of these.
    """

    draft_tokens: Positive = 3
    """T: maximum number of drafted tokens in a block."""

    draft_confidence: Share = 0.0
    """Drafting stops after a token that is less likely than this."""

    draft_tree_threshold: Share = 1.0
    """δ: smallest product of q on the path of a token drafted beside another (1: a chain)."""

    draft_tree_stop: Share = 0.0
    """Drafting stops where the products of q of a position's tokens sum to less than this."""

    draft_tree: Annotated[
        tuple[Natural, ...], BeforeValidator(_split_tree), Field(max_length=MOST_NODES)
    ] = ()
    """A tree that each block drafts, as far as there is room: the number of children of each node,
    level by level from the last decided token on (``2-1-0-1``; ``none``: no fixed tree)."""

    draft_growth: Strength = 0.0
    """Cap the next block at this multiple of the number of tokens decided last (0: no cap)."""

    @property
    def branches(self) -> str | None:
        """Name of the constant that makes blocks trees; None: every block is a chain."""
        fixed = "draft_tree" if max(self.draft_tree, default=0) > 1 else None
        return "draft_tree_threshold" if self.draft_tree_threshold < 1 else fixed

    def with_tree(self, tree: Sequence[int] | str) -> Self:
        """The same constants with a static tree in every block, or with a chain where it is one."""
        shape = DraftingConfig(draft_tokens=2**31, draft_tree=tree).draft_tree
        if not shape:
            raise SafeDraftError(f"{tree!r} is not a tree: write numbers such as 2-1-0-1")
        chosen = {
            "draft_tokens": sum(shape),
            "draft_confidence": 0.0,
            "draft_growth": 0.0,
            **OF_CHAINS,
            "draft_tree": () if set(shape) <= {1} else shape,
        }
        return self.replace(**chosen)

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        tree, nodes = self.draft_tree, 0
        for node, children in enumerate(tree):
            if node > nodes:
                raise ValueError(
                    f"draft_tree: {nodes + 1} nodes, the root included, and more numbers than these"
                )
            nodes += children
        if tree and not nodes:
            raise ValueError("draft_tree has no tokens: write none for no tree")
        if nodes > self.draft_tokens:
            raise ValueError(f"draft_tree has {nodes} tokens: draft_tokens must be at least that")
        others = (self.draft_confidence, self.draft_growth, self.draft_tree_stop)
        if tree and (any(others) or self.draft_tree_threshold < 1):
            raise ValueError(
                "draft_tree says what is drafted: set draft_confidence, draft_growth and "
                "draft_tree_stop to 0, and draft_tree_threshold to 1"
            )
        return self

    def draft_length(self, decided: int) -> int:
        """Maximum number of tokens to draft after a block that decided ``decided``; 0 is none."""
        if not decided or not self.draft_growth:
            return self.draft_tokens
        return max(1, min(self.draft_tokens, int(decided * self.draft_growth)))


OF_SPEED = frozenset(DraftingConfig.model_fields)
"""Constants that change the speed, never a token."""


class CompositeConfig(DraftingConfig):
    """The constants of one position's decision in SSD (Sections 4.1 and 4.2)."""

    sample_space_size: Positive = 10
    """c: number of tokens the models must have in common (intersection), or give each (union)."""

    kappa: Positive = 1
    """κ: fall back to the target's distribution if none of its top-κ tokens is in the
    intersection."""

    alpha_intersection: Strength = 0.3
    """α_I: weight of the draft in the intersection scheme; may exceed 1."""

    alpha_union: Strength = 0.8
    """α_U: weight of the draft in the union scheme; may exceed 1."""

    bin_size: Positive = 7
    """b: number of positions over which one match ratio β is taken."""

    initial_scheme: Scheme = Scheme.INTERSECTION
    """The scheme in which decoding starts; the paper starts in intersection."""

    prefill_scheme: Scheme | None = None
    """The scheme in which decoding starts if the assistant's turn has begun already, as in a
    prefilled answer (None: ``initial_scheme``, as in the paper)."""

    def first_scheme(self, turn_begun: bool | None) -> Scheme:
        """The scheme of a request's first position.

        Args:
            turn_begun: whether the assistant's turn has begun already; None if only token ids are
                known.

        Raises:
            SafeDraftError: ``turn_begun`` is None, and the two schemes differ.
        """
        if self.prefill_scheme in (None, self.initial_scheme):
            return self.initial_scheme
        if turn_begun is None:
            raise SafeDraftError(
                "prefill_scheme: token ids do not say whether the assistant's turn has begun: set "
                f"initial_scheme to {self.prefill_scheme} too"
            )
        return self.prefill_scheme if turn_begun else self.initial_scheme


class SSDConfig(CompositeConfig):
    """The constants of Speculative Safety-Aware Decoding; the defaults are the published ones.

    Raises ``SafeDraftError`` (a ``ValueError``) for values outside their range.
    """

    alpha_min: Strength = 0.3
    """α_I falls no further than this, and rises to it where it began with less, once a bin has
    left the scheme in intersection."""

    alpha_decay: Strength = 0.15
    """Amount by which α_I falls at each bin that leaves the scheme in intersection."""

    threshold: Share = 0.6
    """A β below it means union."""

    threshold_decay: Share = 0.1
    """Amount by which the threshold falls at each bin that leaves the scheme unchanged."""

    union_bins: Positive = 1
    """Minimum number of bins to stay in union (1 in the paper). One bin can end mid-refusal and
    let the target resume."""

    @property
    def weakness(self) -> str | None:
        """Why these constants leave the target without a guard; None if they do not."""
        if self.alpha_union == 0:
            return "alpha_union is 0: where the models disagree, the target alone decides"
        return None


class RiskConfig(SSDConfig):
    """The constants of SSD where the risk of the request is known (not part of the paper)."""

    risky_above: Share = 0.5
    """A request with a higher risk is decided in union from its first position on."""

    harmless_below: Share = 0.1
    """A request with a lower risk stays in intersection."""

    alpha_harmless: Strength = 0.3
    """α_H: weight of the draft for a request below ``harmless_below``."""

    reading_bins: Natural = 0
    """Number of bins after which the risk is read again; 0 reads it once."""

    reading_above: Share = 0.05
    """The risk is read again as long as the largest one so far is above this."""

    @property
    def weakness(self) -> str | None:
        """See ``SSDConfig``."""
        if self.harmless_below == 1:
            return "harmless_below is 1: every request is taken to be harmless"
        return super().weakness

    @classmethod
    def extend(cls, config: SSDConfig) -> RiskConfig:
        """Constants of SSD, with those of the risk at their defaults where they have none."""
        if isinstance(config, RiskConfig):
            return config
        values = dict(RiskConfig()) | dict(config)
        return RiskConfig.model_construct(_fields_set=config.model_fields_set, **values)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.harmless_below > self.risky_above:
            raise ValueError("harmless_below must not exceed risky_above")
        return self


def _wrap_one(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _read_schema(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"is not JSON: {error}") from error
    return value.model_json_schema() if hasattr(value, "model_json_schema") else value


class StructuredOutputs(Constants):
    """The form of a reply: exactly one of the first five. The prompt should ask for it as well.

    Raises ``SafeDraftError`` (a ``ValueError``) where none or several are given.
    """

    json_schema: Annotated[Mapping[str, Any], BeforeValidator(_read_schema)] | None = None
    """The reply is JSON that is valid under this JSON schema: a mapping, text or Pydantic model."""

    json_object: bool = False
    """The reply is a JSON object."""

    regex: str | None = None
    """The reply matches this regular expression as a whole."""

    choice: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The reply is one of these texts."""

    grammar: str | None = None
    """The reply is a sentence of this context-free grammar, in llguidance's dialect of Lark."""

    refusal: bool = True
    """Whether the reply may be a refusal instead. Without it, a form that has no room for a refusal
    leaves SSD only the choice among what the form allows."""

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        forms = ("json_schema", "json_object", "regex", "choice", "grammar")
        given = [name for name in forms if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise ValueError(f"needs exactly one of {', '.join(forms)}: {names} is given")
        return self

    @property
    def is_json(self) -> bool:
        """Whether the reply is JSON, unless it is a refusal."""
        return self.json_object or self.json_schema is not None


class SamplingParams(Constants):
    """Sampling parameters: the choice of a token from the composite distribution.

    Temperature divides the logits of both models; ``top_k``, then ``top_p``, then ``min_p`` cut the
    composite. The names of vLLM and Transformers are accepted too (``safedraft.core.options``);
    a parameter that is None counts as not given.
    Raises ``SafeDraftError`` (a ``ValueError``) for values outside their range.
    """

    max_new_tokens: Positive = 512
    """Most tokens in a reply."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    """0 is greedy; otherwise at least 0.01."""

    top_k: Natural = 0
    """Keep the k most likely tokens of the composite; 0 keeps all, as -1 does."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the fewest most likely tokens that reach this share of the composite."""

    min_p: Share = 0.0
    """Keep the tokens that are at least this many times as likely as the likeliest one."""

    presence_penalty: Penalty = 0.0
    """Taken from the logit of every token of the reply so far, in both models."""

    frequency_penalty: Penalty = 0.0
    """The same, once for each time that the token was said."""

    repetition_penalty: Repetition = 1.0
    """Divides the logit of every token of the target's prompt and the reply so far, in both models;
    multiplies one below 0."""

    logit_bias: Mapping[Annotated[int, Field(ge=0)], Bias] = {}
    """Added to the logits of tokens by their ids, in both models; the repetition penalty is applied
    after it. A client that may set it can forbid the words of a refusal."""

    seed: Natural | None = None
    """Makes a sampled reply repeatable; drawn and reported when not given."""

    stop: Annotated[tuple[str, ...], BeforeValidator(_wrap_one)] = ()
    """Strings that end the reply, or one; they are not part of it."""

    stop_token_ids: Annotated[tuple[Natural, ...], BeforeValidator(_wrap_one)] = ()
    """Tokens that end the reply, or one, besides the pair's end tokens."""

    structured_outputs: StructuredOutputs | None = None
    """The form of the reply, such as a JSON schema; any if not given."""

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, values: Any) -> Any:
        return translate(values, cls.model_fields) if isinstance(values, Mapping) else values

    def replace(self, /, **constants: Any) -> Self:
        """Like ``Constants.replace``, by any name of an option; None means the default value."""
        named = translate(constants, type(self).model_fields, self.temperature)
        defaults = {name: value for name, value in constants.items() if value is None}
        return super().replace(**defaults | named)

    @field_validator("temperature")
    @classmethod
    def _not_almost_greedy(cls, value: float) -> float:
        if 0 < value < 0.01:
            raise ValueError("must be 0 (greedy) or at least 0.01")
        return value

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    @property
    def shifts(self) -> bool:
        """Whether the logits are shifted."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty
        return penalties != (0, 0, 1) or bool(self.logit_bias)

    def fitted(self, prompt_tokens: int, context_length: int) -> SamplingParams:
        """Return these parameters with a seed, and at most as many new tokens as there is room.

        Raises:
            PromptTooLongError: there is no room for a token.
        """
        room = context_length - prompt_tokens
        if room < 1:
            raise PromptTooLongError(prompt_tokens, context_length)
        seed = self.seed if self.seed is not None else secrets.randbits(63)
        return self.replace(max_new_tokens=min(self.max_new_tokens, room), seed=seed)
