"""``safedraft replay``: are the tokens those of the method's authors?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from safedraft.cli import options
from safedraft.core.config import Positive, SamplingParams, Scheme, SSDConfig, Strength
from safedraft.core.errors import SafeDraftError, problems

if TYPE_CHECKING:
    from safedraft.engines.vllm.pair import VllmPair
    from safedraft.models.registry import PairSpec
    from safedraft.pair import Pair
    from safedraft.text.chat import Reply

_TOLERANCE = 1e-9  # strengths are sums of decimal fractions


class Case(BaseModel):
    """One recorded reply: greedy, every constant but the two strengths at its default."""

    name: str | None = None
    target_prompt: Annotated[list[int], Field(min_length=1)]
    draft_prompt: Annotated[list[int], Field(min_length=1)]
    alpha_intersection: Strength
    alpha_union: Strength
    max_new_tokens: Positive
    output: list[int]
    steps: list[tuple[Scheme, FiniteFloat, int]]
    """Scheme, strength and token of every position."""


class Recording(BaseModel):
    """A conformance file."""

    target: str
    """A folder beside the file, used where no other is named."""
    draft: str
    eos_token_id: int | list[int] | None = None
    cases: Annotated[list[Case], Field(min_length=1)]

    @property
    def end_tokens(self) -> frozenset[int]:
        """What ended the recorded replies."""
        ends = self.eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends or [])


def replay(
    file: Annotated[Path, typer.Argument(help="A conformance file.")],
    pair: options.PairName = None,
    target: options.Target = None,
    draft: options.Draft = None,
    adapter: options.Adapter = None,
    no_adapter: options.NoAdapter = False,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    draft_tokens: Annotated[
        int,
        typer.Option(min=1, help="T; it must not change a token.", rich_help_panel="Method"),
    ] = 3,
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(help="vllm decodes the cases whose two prompts are equal, all at once."),
    ] = "transformers",
) -> None:
    """Decode every case of a conformance file and compare ids, schemes and strengths.

    With no models named, they are the folders beside the file that it names itself. Folders need
    no tokenizer. Exits with 1 unless all cases are identical.

    [dim]safedraft replay near.json[/]
    """
    from safedraft.load import choose_pair

    recording = read_recording(file)
    if pair is None and target is None and draft is None:
        target, draft = (_beside(file, name) for name in (recording.target, recording.draft))
    cases = dict(enumerate(recording.cases, start=1))
    if engine == "vllm":
        cases = {at: case for at, case in cases.items() if case.target_prompt == case.draft_prompt}
        if not cases:
            raise SafeDraftError(f"{file}: no case has one prompt for both models, as vLLM needs")
        if device != "auto":
            raise SafeDraftError("--device is not known to vLLM, which has a platform")
        spec = choose_pair(
            pair, target=target, draft=draft, adapter=adapter, use_adapter=not no_adapter
        )
        differences: Iterable[str | None] = _in_vllm(
            spec, dtype, list(cases.values()), recording, draft_tokens
        )
    else:
        loaded = options.open_pair(pair, target, draft, adapter, no_adapter, dtype, device)
        differences = (
            replay_case(loaded, case, recording.end_tokens, draft_tokens) for case in cases.values()
        )
    identical = 0
    for (index, case), difference in zip(cases.items(), differences, strict=True):
        identical += difference is None
        name = f" ({case.name})" if case.name else ""
        outcome = difference or f"identical, {len(case.output)} tokens"
        typer.echo(f"case {index}{name}: {outcome}")
    if left := len(recording.cases) - len(cases):
        typer.echo(
            f"{left} cases left out: they have two prompts, and vLLM has one for both models"
        )
    typer.echo(f"{identical}/{len(cases)} cases identical")
    if identical < len(cases):
        raise typer.Exit(1)


def _in_vllm(
    spec: PairSpec, dtype: str, cases: Sequence[Case], recording: Recording, draft_tokens: int
) -> list[str | None]:
    """The cases hold prompts as ids, so a system prompt of the pair's has no part in them."""
    from safedraft.engines.vllm.pair import load_vllm_pair
    from safedraft.engines.vllm.setup import passes
    from safedraft.models.progress import show_progress

    bare = spec.model_copy(update={"target_system": None, "draft_system": None})
    config = SSDConfig(draft_tokens=draft_tokens)
    longest = max(len(case.target_prompt) + case.max_new_tokens for case in cases)
    engine: dict[str, Any] = {
        "max_model_len": longest + 2 * passes(draft_tokens),  # a reply ends two blocks before it
        "kv_cache_memory_bytes": 2**30,  # vLLM would take most of what there is
        "enforce_eager": True,  # compiling takes longer than a few cases
    }
    with show_progress() as report:
        loaded = load_vllm_pair(bare, config=config, dtype=dtype, report=report, **engine)
    return replay_in_vllm(loaded, cases, recording.end_tokens)


def _beside(file: Path, name: str) -> str:
    folder = (file.parent / name).resolve()
    if not folder.is_dir():
        raise SafeDraftError(f"there is no folder {folder}: name the models by --pair or --target")
    return str(folder)


def read_recording(file: Path) -> Recording:
    """The conformance file, or a ``SafeDraftError`` that names the file and the field."""
    try:
        return Recording.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SafeDraftError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise SafeDraftError(f"{file}: {problems(error, whole='the file')[0]}") from error


def replay_case(
    pair: Pair, case: Case, end_tokens: frozenset[int], draft_tokens: int
) -> str | None:
    """How the decoded reply differs from the recorded one; None if it does not."""
    from dataclasses import replace

    from safedraft.pair import Prompts

    config = _config(case).model_copy(update={"draft_tokens": draft_tokens})
    reply = (
        replace(pair, end_tokens=end_tokens)
        .stream_ids(
            Prompts(case.target_prompt, case.draft_prompt),
            sampling=SamplingParams(max_new_tokens=case.max_new_tokens),
            config=config,
        )
        .drain()
    )
    return difference_from(case, reply)


def replay_in_vllm(
    pair: VllmPair, cases: Sequence[Case], end_tokens: frozenset[int]
) -> list[str | None]:
    """As ``replay_case``, for all cases at once; T is the engine's."""
    from dataclasses import replace

    loaded = replace(pair, end_tokens=end_tokens)
    configs = [
        _config(case).model_copy(update={"draft_tokens": pair.config.draft_tokens})
        for case in cases
    ]
    samplings = [SamplingParams(max_new_tokens=case.max_new_tokens) for case in cases]
    prompts = [case.target_prompt for case in cases]
    replies = loaded.generate_many_ids(prompts, sampling=samplings, config=configs)
    return [difference_from(case, reply) for case, reply in zip(cases, replies, strict=True)]


def _config(case: Case) -> SSDConfig:
    return SSDConfig(alpha_intersection=case.alpha_intersection, alpha_union=case.alpha_union)


def difference_from(case: Case, reply: Reply) -> str | None:
    """How a reply differs from the recorded one; None if it does not."""
    for at, (token, expected) in enumerate(zip(reply.trace, case.steps, strict=False)):
        scheme, strength, id = expected
        same = (token.scheme, token.id) == (scheme, id)
        if not (same and abs(token.strength - strength) <= _TOLERANCE):
            found = f"{token.scheme} {token.strength:g} token {token.id}"
            return f"differs at {at}: {found}, expected {scheme} {strength:g} token {id}"
    ids = [token.id for token in reply.trace]
    if len(ids) != len(case.steps) or ids != case.output:
        return f"differs in length: {len(ids)} tokens, expected {len(case.output)}"
    return None
