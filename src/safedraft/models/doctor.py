"""Whether two models can decode together, and why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safedraft.core.errors import IncompatiblePair, SafeDraftError, first_line

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

Status = Literal["ok", "warning", "failure"]

_EXAMPLES = 3
_SENTENCES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "def f(x):\n    return x ** 2  # naïve — 数学 🙂",
)


@dataclass(frozen=True)
class Anatomy:
    """What is known of a model without its weights."""

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    generation: GenerationConfig | None

    @property
    def rows(self) -> int:
        """Rows of the output layer: tokens and padding."""
        return int(self.config.get_text_config().vocab_size)

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Every id that the tokenizer knows."""
        vocabulary = self.tokenizer.get_vocab() if self.tokenizer else {}
        return {id: text for text, id in vocabulary.items()}

    @property
    def end_tokens(self) -> frozenset[int]:
        """What ends a reply of this model."""
        ends = self.generation.eos_token_id if self.generation else None
        ends = self.config.get_text_config().eos_token_id if ends is None else ends
        known = {ends} if isinstance(ends, int) else set(ends or ())
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            known.add(self.tokenizer.eos_token_id)
        return frozenset(known)

    @property
    def context_length(self) -> int | None:
        """Positions the model was made for, where it says so."""
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Examination:
    """All findings on a pair, and what decoding takes from them."""

    target: str
    draft: str
    findings: list[Finding]
    vocabulary: int
    """V: ids below it can be decoded."""
    end_tokens: frozenset[int]
    context_length: int

    @property
    def compatible(self) -> bool:
        """Whether nothing stands against decoding together."""
        return all(finding.status != "failure" for finding in self.findings)

    def require(self) -> None:
        """Raise ``IncompatiblePair`` with every reason, if there is one."""
        reasons = [finding.detail for finding in self.findings if finding.status == "failure"]
        if reasons:
            raise IncompatiblePair(
                f"{self.target} and {self.draft} cannot decode together: {'; '.join(reasons)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "target": self.target,
            "draft": self.draft,
            "compatible": self.compatible,
            "vocabulary": self.vocabulary,
            "end_tokens": sorted(self.end_tokens),
            "context_length": self.context_length,
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(target: Anatomy, draft: Anatomy) -> Examination:
    """Run every check on a pair."""
    findings = [finding for check in _CHECKS for finding in check(target, draft)]
    lengths = [model.context_length for model in (target, draft) if model.context_length]
    return Examination(
        target=target.name,
        draft=draft.name,
        findings=findings,
        vocabulary=_shared(target, draft),
        end_tokens=_shared_ends(target, draft),
        context_length=min(lengths, default=2**31),
    )


def read_anatomy(folder: Path, name: str) -> Anatomy:
    """Configuration and tokenizer of a model in a folder; no weights are read, no code is run.

    Raises:
        SafeDraftError: the folder's files cannot be read.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        generation = None
        if (folder / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Transformers raises what its readers raise
        raise SafeDraftError(
            f"{folder}: config.json cannot be used: {first_line(error)}"
        ) from error
    return Anatomy(name, config, read_tokenizer(folder), generation)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, or None where the folder has none."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / file).exists() for file in files):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as above
        raise SafeDraftError(
            f"{folder}: the tokenizer cannot be read: {first_line(error)}"
        ) from error
    return tokenizer


def _shared(target: Anatomy, draft: Anatomy) -> int:
    """Ids below it have a row in both models and, where tokenizers tell, a token in both."""
    limits = [target.rows, draft.rows]
    limits += [max(model.tokens) + 1 for model in (target, draft) if model.tokens]
    return min(limits)


def _shared_ends(target: Anatomy, draft: Anatomy) -> frozenset[int]:
    """What ends a reply of either model, as far as it can be decoded."""
    shared = _shared(target, draft)
    return frozenset(end for end in target.end_tokens | draft.end_tokens if end < shared)


def _rewindable(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    from safedraft.engines.transformers.session import model_class, why_not_rewindable

    for model in (target, draft):
        reason = why_not_rewindable(model.config, model_class(model.config))
        status: Status = "failure" if reason else "ok"
        detail = reason or f"{model.config.model_type}: the cache can be cut back"
        yield Finding("rewindable state", status, f"{model.name}: {detail}")


def _vocabulary(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    shared, ours, theirs = _shared(target, draft), target.tokens, draft.tokens
    if not ours or not theirs:
        blind = " and ".join(model.name for model in (target, draft) if not model.tokens)
        yield Finding(
            "vocabulary",
            "warning",
            f"{blind}: no tokenizer, so only sizes were compared ({shared})",
        )
        return
    common = ours.keys() & theirs.keys()
    differing = sorted(id for id in common if ours[id] != theirs[id])
    if differing:
        shown = ", ".join(f"{id} is {ours[id]!r} or {theirs[id]!r}" for id in differing[:_EXAMPLES])
        detail = (
            f"{len(differing)} of {len(common)} shared ids stand for different tokens ({shown})"
        )
        yield Finding("vocabulary", "failure", detail)
    else:
        yield Finding("vocabulary", "ok", f"all {len(common)} shared ids stand for the same tokens")
    alone = sorted(ours.keys() ^ theirs.keys())
    if alone:
        shown = ", ".join(repr((ours | theirs)[id]) for id in alone[:_EXAMPLES])
        detail = f"{len(alone)} tokens are known to one model only ({shown})"
        yield Finding(
            "vocabulary", "warning", f"{detail}; those from id {shared} are never decoded"
        )


def _padding(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    shared = _shared(target, draft)
    for model in (target, draft):
        extra = model.rows - shared
        detail = f"{extra} of {model.rows} output rows lie past the shared vocabulary"
        yield Finding("padding rows", "ok", f"{model.name}: {detail}{', masked' if extra else ''}")


def _encoding(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    if target.tokenizer is None or draft.tokenizer is None:
        return
    ours, theirs = target.tokenizer, draft.tokenizer
    differing = [text for text in _SENTENCES if _ids(ours, text) != _ids(theirs, text)]
    if differing:
        detail = f"the tokenizers split text differently ({differing[0]!r}): expect few matches"
        yield Finding("encoding", "warning", detail)
    else:
        yield Finding("encoding", "ok", "both tokenizers split text alike")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _end_tokens(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    shared = _shared(target, draft)
    unreachable = sorted(end for end in target.end_tokens if end >= shared)
    if not target.end_tokens:
        yield Finding(
            "end tokens", "warning", "the target has none: replies end at the length limit"
        )
    elif unreachable:
        detail = f"the target ends its replies with ids the draft does not have ({unreachable})"
        yield Finding("end tokens", "failure", detail)
    elif target.end_tokens != draft.end_tokens:
        detail = f"target {sorted(target.end_tokens)}, draft {sorted(draft.end_tokens)}"
        known = sorted(_shared_ends(target, draft))
        yield Finding("end tokens", "warning", f"{detail}: a reply ends at any of {known}")
    else:
        yield Finding("end tokens", "ok", f"both end at {sorted(target.end_tokens)}")


def _special_tokens(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    if target.tokenizer is None or draft.tokenizer is None:
        return
    ours, theirs = (set(model.tokenizer.all_special_tokens) for model in (target, draft))  # type: ignore[union-attr]
    if ours == theirs:
        yield Finding("special tokens", "ok", f"the same {len(ours)} in both")
    else:
        detail = f"only in one tokenizer: {', '.join(sorted(ours ^ theirs))}"
        yield Finding("special tokens", "warning", detail)


def _context(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    lengths = {model.name: model.context_length for model in (target, draft)}
    known = [length for length in lengths.values() if length]
    detail = ", ".join(f"{name} {length or 'unknown'}" for name, length in lengths.items())
    if len(known) < len(lengths):
        yield Finding(
            "context", "warning", f"{detail}: over-long prompts cannot be told beforehand"
        )
    else:
        yield Finding("context", "ok", f"{detail} tokens; a conversation has room for {min(known)}")


def _templates(target: Anatomy, draft: Anatomy) -> Iterator[Finding]:
    for model in (target, draft):
        if model.tokenizer is None:
            yield Finding("chat template", "warning", f"{model.name}: no tokenizer, token ids only")
        elif not model.tokenizer.chat_template:
            yield Finding("chat template", "warning", f"{model.name}: none, so it cannot chat")
        else:
            yield Finding("chat template", "ok", f"{model.name}: has its own")


_CHECKS: tuple[Callable[[Anatomy, Anatomy], Iterator[Finding]], ...] = (
    _rewindable,
    _vocabulary,
    _padding,
    _encoding,
    _special_tokens,
    _end_tokens,
    _context,
    _templates,
)
