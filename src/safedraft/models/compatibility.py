"""Checks whether two models can decode together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import IncompatiblePairError
from safedraft.models.check import Check, Status
from safedraft.models.description import ModelDescription
from safedraft.models.template_checks import check_templates, check_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 3
"""Number of differing tokens that a message lists."""

_ANSWER = "An answer of the assistant"

_SENTENCES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "def f(x):\n    return x ** 2  # naïve — 数学 🙂",
)


@dataclass(frozen=True)
class CompatibilityReport:
    """The outcome of every check on a pair, and the limits that decoding takes from both models."""

    target: str
    draft: str
    checks: list[Check]
    vocabulary: int
    """V: only ids below it are decoded."""
    end_tokens: frozenset[int]
    context_length: int
    """Length of the shorter context, in tokens."""

    @property
    def compatible(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failure" for check in self.checks)

    def require(self) -> None:
        """Check that the models can decode together.

        Raises:
            IncompatiblePairError: a check failed; the message lists every reason.
        """
        reasons = [check.detail for check in self.checks if check.status == "failure"]
        if reasons:
            raise IncompatiblePairError(
                f"{self.target} and {self.draft} cannot decode together: {'; '.join(reasons)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON."""
        return {
            "target": self.target,
            "draft": self.draft,
            "compatible": self.compatible,
            "vocabulary": self.vocabulary,
            "end_tokens": sorted(self.end_tokens),
            "context_length": self.context_length,
            "checks": [asdict(check) for check in self.checks],
        }


def check_compatibility(target: ModelDescription, draft: ModelDescription) -> CompatibilityReport:
    """Run every check on a pair."""
    lengths = [model.context_length for model in (target, draft) if model.context_length]
    return CompatibilityReport(
        target=target.name,
        draft=draft.name,
        checks=[check for run_check in _CHECKS for check in run_check(target, draft)],
        vocabulary=_shared_vocabulary(target, draft),
        end_tokens=_shared_end_tokens(target, draft),
        context_length=min(lengths, default=2**31),
    )


def _shared_vocabulary(target: ModelDescription, draft: ModelDescription) -> int:
    """V: ids below it have a row in both models and, if there are tokenizers, a token in both."""
    limits = [target.rows, draft.rows]
    limits += [max(model.tokens) + 1 for model in (target, draft) if model.tokens]
    return min(limits)


def _shared_end_tokens(target: ModelDescription, draft: ModelDescription) -> frozenset[int]:
    """Ids that end a reply of either model and lie in the shared vocabulary."""
    shared = _shared_vocabulary(target, draft)
    return frozenset(id for id in target.end_tokens | draft.end_tokens if id < shared)


def _check_rewindable(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    from safedraft.models.rewindable import model_class, why_not_rewindable

    for model in (target, draft):
        reason = why_not_rewindable(model.config, model.kind or model_class(model.config))
        status: Status = "failure" if reason else "ok"
        detail = reason or f"{model.config.model_type}: the cache can be cut back"
        yield Check("rewindable state", status, f"{model.name}: {detail}")


def _check_vocabulary(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    shared = _shared_vocabulary(target, draft)
    if not target.tokens or not draft.tokens:
        names = " and ".join(model.name for model in (target, draft) if not model.tokens)
        detail = f"{names}: no tokenizer, so only sizes were compared ({shared})"
        yield Check("vocabulary", "warning", detail)
        return
    common = target.tokens.keys() & draft.tokens.keys()
    differing = sorted(id for id in common if target.tokens[id] != draft.tokens[id])
    if differing:
        shown = ", ".join(
            f"{id} is {target.tokens[id]!r} or {draft.tokens[id]!r}" for id in differing[:_SHOWN]
        )
        detail = (
            f"{len(differing)} of {len(common)} shared ids stand for different tokens ({shown})"
        )
        if _only_spare(differing, target, draft):
            detail += ": control tokens that no template and no end of a reply uses"
            yield Check("vocabulary", "warning", detail)
        else:
            yield Check("vocabulary", "failure", detail)
    else:
        yield Check("vocabulary", "ok", f"all {len(common)} shared ids stand for the same tokens")
    unshared = sorted(target.tokens.keys() ^ draft.tokens.keys())
    if unshared:
        tokens = target.tokens | draft.tokens
        shown = ", ".join(repr(tokens[id]) for id in unshared[:_SHOWN])
        detail = f"{len(unshared)} tokens are known to one model only ({shown})"
        yield Check(
            "vocabulary", "warning", f"{detail}; ids of {shared} and above are never decoded"
        )


def _only_spare(ids: Sequence[int], target: ModelDescription, draft: ModelDescription) -> bool:
    """Whether ids are control tokens in both models that neither writes in a conversation."""
    for model in (target, draft):
        assert model.tokenizer is not None
        added = model.tokenizer.added_tokens_decoder
        template = str(model.tokenizer.chat_template or "")
        if not all(
            id in added
            and added[id].special
            and added[id].content not in template
            and id not in model.end_tokens
            for id in ids
        ):
            return False
    return True


def _check_padding(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    shared = _shared_vocabulary(target, draft)
    for model in (target, draft):
        extra = model.rows - shared
        detail = f"{extra} of {model.rows} output rows lie past the shared vocabulary"
        yield Check("padding rows", "ok", f"{model.name}: {detail}{', masked' if extra else ''}")


def _check_encoding(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    if target.tokenizer is None or draft.tokenizer is None:
        return
    for text in _SENTENCES:
        if _encode(target.tokenizer, text) != _encode(draft.tokenizer, text):
            detail = f"the tokenizers split text differently ({text!r}): expect few matches"
            yield Check("encoding", "warning", detail)
            return
    yield Check("encoding", "ok", "both tokenizers split text alike")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _check_end_tokens(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    shared = _shared_vocabulary(target, draft)
    unreachable = sorted(id for id in target.end_tokens if id >= shared)
    if not target.end_tokens:
        detail = "the target has none: replies end at the length limit"
        yield Check("end tokens", "warning", detail)
    elif unreachable:
        detail = f"the target ends its replies with ids the draft does not have ({unreachable})"
        yield Check("end tokens", "failure", detail)
    elif target.end_tokens != draft.end_tokens:
        detail = f"target {sorted(target.end_tokens)}, draft {sorted(draft.end_tokens)}"
        ends = sorted(_shared_end_tokens(target, draft))
        yield Check("end tokens", "warning", f"{detail}: a reply ends at any of {ends}")
    else:
        yield Check("end tokens", "ok", f"both end at {sorted(target.end_tokens)}")


def _check_turn_ends(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    ends = _shared_end_tokens(target, draft)
    for model in (target, draft):
        token = _turn_end(model.tokenizer) if model.tokenizer else None
        if model.tokenizer is None or token is None or token in ends:
            continue
        text = str(model.tokenizer.convert_ids_to_tokens(token))
        detail = (
            f"{model.name}: its chat template ends turns with {text!r} ({token}), which is not an "
            "end token: replies continue into turns that nobody wrote; add it to eos_token_id in "
            f"generation_config.json, or give {text!r} as a stop string"
        )
        yield Check("turn ends", "warning", detail)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the control token after an assistant's turn in the chat template, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # what a template refuses is reported where it is used
        return None
    after = tokenizer.encode(rendered.rpartition(_ANSWER)[2], add_special_tokens=False)
    control = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id for id in after if id in control), None)


def _check_special_tokens(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    if target.tokenizer is None or draft.tokenizer is None:
        return
    tokens = set(target.tokenizer.all_special_tokens)
    unshared = sorted(tokens ^ set(draft.tokenizer.all_special_tokens))
    if unshared:
        detail = f"only in one tokenizer: {', '.join(unshared)}"
        yield Check("special tokens", "warning", detail)
    else:
        yield Check("special tokens", "ok", f"the same {len(tokens)} in both")


def _check_context(target: ModelDescription, draft: ModelDescription) -> Iterator[Check]:
    lengths = {model.name: model.context_length for model in (target, draft)}
    detail = ", ".join(f"{name} {length or 'unknown'}" for name, length in lengths.items())
    if None in lengths.values():
        detail += ": over-long prompts cannot be detected beforehand"
        yield Check("context", "warning", detail)
    else:
        shorter = min(length for length in lengths.values() if length)
        yield Check("context", "ok", f"{detail} tokens; a conversation has room for {shorter}")
    for model in (target, draft):
        if model.context_length != model.positions:
            detail = (
                f"{model.name}: {model.context_length} of {model.positions} positions are used, "
                "since the factors of its positions change with the length after these"
            )
            yield Check("context", "warning", detail)


_CHECKS: tuple[Callable[[ModelDescription, ModelDescription], Iterator[Check]], ...] = (
    _check_rewindable,
    _check_vocabulary,
    _check_padding,
    _check_encoding,
    _check_special_tokens,
    _check_end_tokens,
    _check_turn_ends,
    _check_context,
    check_templates,
    check_thinking,
)
