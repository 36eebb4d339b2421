"""The options with which vLLM runs a pair."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safedraft.core.config import OF_CHAINS, RiskConfig, SSDConfig
from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.engines.vllm.checks import SCHEDULER, WORKERS, name_platform
from safedraft.engines.vllm.options import INT8, KEY, Settings, count_passes
from safedraft.models.description import ModelDescription
from safedraft.models.devices import can_be_split, count_heads, split_sizes
from safedraft.models.gguf import is_gguf
from safedraft.models.parts import Parts, fetch_parts
from safedraft.models.probe_file import PROBE
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec
from safedraft.models.template_checks import require_one_template
from safedraft.models.weights import merged_draft
from safedraft.text.encode import generation_prompt, turn_header
from safedraft.text.reasoning import Thinking, switch_of, thinking_of
from safedraft.text.refusals import refusal_tokens
from safedraft.text.template import set_variables, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS = (
    "model", "worker_cls", "scheduler_cls", "speculative_config", "additional_config",
    "generation_config", "async_scheduling", "tokenizer", "spec_method", "spec_model",
    "spec_tokens",
)  # fmt: skip
"""Options of vLLM that the engine sets itself."""

_REFUSED = {
    "device": "vLLM runs on the platform that it was built for",
    "draft_device": "vLLM runs both models on one platform",
    "draft_dtype": "vLLM gives both models one type",
    "trust_remote_code": "models that bring their own code are refused",
}
"""Options that are refused, most of them those of other engines, and why."""

MAX_DRAFT_TOKENS = 5
"""Largest T that is taken from a pair whose drafts end early, if the user names none: vLLM keeps
room for all T tokens of every request."""

DRAFT_TOKENS_UP_TO: Mapping[str, Mapping[int, int | None]] = {
    "cpu": {2: None, 8: 2, 16: 1},
    "cuda": {64: 3, 128: 2, 256: 1},
}
"""T by the maximum number of running requests, if the user names none, for each platform by vLLM's
name; the last entry holds for more requests. None is the pair's own T, which no entry exceeds.

The weights bound the time of a pass over B (T + 1) tokens up to about 16 to 24 of them on
processors, and by calculation up to some 300 on CUDA, where none of it was measured: see Sizing in
docs/vllm.md.
"""


@dataclass(frozen=True)
class EnginePlan:
    """A pair prepared for vLLM, from which the engine's options are made."""

    parts: Parts
    draft: Path
    """The draft with its adapter merged."""
    config: RiskConfig
    named: frozenset[str] = frozenset()
    """Constants that the user named; T is the same at any load if it is one of them."""
    draft_in_int8: bool = False
    """Whether the draft is kept in 8 bits on processors, if the user names no type."""

    def options(
        self,
        given: Mapping[str, Any],
        *,
        requests_may_set_constants: bool = False,
        traces: bool = False,
        draft_tokens_up_to: Mapping[int, int] | None = None,
    ) -> dict[str, Any]:
        """Arguments of vLLM's ``EngineArgs``, by name.

        Args:
            given: arguments of the user.
            draft_tokens_up_to: T by the maximum number of running requests; the last entry holds
                for more. When not given, ``config.draft_tokens`` if the user named it, otherwise
                ``DRAFT_TOKENS_UP_TO``.
            requests_may_set_constants: see ``Settings``.
            traces: see ``Settings``.

        Raises:
            SafeDraftError: an option that the engine sets itself, or a T by load for data-parallel
                engines, which have one T in vLLM.
        """
        if own := [name for name in _OURS if name in given]:
            raise SafeDraftError(f"{own[0]} is set by SafeDraft's engine: leave it out")
        if draft_tokens_up_to and _data_parallel(given):
            raise SafeDraftError("draft_tokens_up_to: vLLM's data-parallel engines have one T")
        if draft_tokens_up_to and "draft_tokens" in self.named:
            raise SafeDraftError("give draft_tokens or draft_tokens_up_to, not both")
        by_load = dict(sorted((draft_tokens_up_to or self._usual_by_load(given)).items()))
        if any(load < 1 or drafted < 1 for load, drafted in by_load.items()):
            raise SafeDraftError("draft_tokens_up_to: both numbers must be at least 1")
        self._require_fitting(given)
        vocabulary = self.parts.compatibility.vocabulary
        settings = Settings(
            config=self._settle_constants(),
            draft_tokens_up_to=by_load,
            vocabulary=vocabulary,
            generation_prompt=self.generation_prompt,
            turn_header=self.turn_header,
            refusal_tokens=refusal_tokens(self.parts.descriptions[1].tokenizer, vocabulary),
            probe=self.probe,
            probe_reads=self.parts.probe.reads if self.parts.probe else (),
            requests_may_set_constants=requests_may_set_constants,
            traces=traces,
        )
        return {
            "max_model_len": self.parts.compatibility.context_length,
            **given,
            "model": str(self.parts.folders[0]),
            "worker_cls": _worker(),
            "scheduler_cls": SCHEDULER,
            "async_scheduling": False,
            # A checkpoint's own defaults, such as a repetition penalty, would change the target.
            "generation_config": "vllm",
            "speculative_config": {
                "method": "draft_model",
                "model": str(self.draft),
                "num_speculative_tokens": count_passes(
                    max(by_load.values(), default=self.config.draft_tokens)
                ),
                "draft_tensor_parallel_size": given.get("tensor_parallel_size", 1),
                "draft_sample_method": "probabilistic",
                "quantization": self._quantization(given),
            },
            "additional_config": {KEY: settings.model_dump(mode="json")},
        }

    @property
    def probe(self) -> Path | None:
        """The file of the adapter's risk probes, if it has one."""
        parts = self.parts
        return parts.adapter / PROBE if parts.adapter and parts.probe else None

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        return _template_tokenizer(self.parts)

    @cached_property
    def generation_prompt(self) -> tuple[int, ...]:
        """The ids with which the chat template begins the assistant's turn; none without one."""
        return generation_prompt(self._tokenizer) if self._tokenizer else ()

    @cached_property
    def turn_header(self) -> tuple[int, ...]:
        """The ids that end a turn and begin one of the assistant; none without a template."""
        return turn_header(self._tokenizer) if self._tokenizer else ()

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template for vLLM's server, in which what the pair sets cannot be changed.

        The pair's variables and the switch of its reasoning are fixed, since a request in another
        mode would meet a draft that was not trained for it. None without a template.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            return None
        fixed = dict(self.parts.spec.template or {})
        switch = switch_of(tokenizer)
        if switch and switch not in fixed:
            thinks = thinking_of(tokenizer) is not Thinking.OFF
            fixed[switch] = thinks
        return set_variables(template_of(tokenizer), fixed, fixed=True)

    def _quantization(self, given: Mapping[str, Any]) -> str | None:
        unnamed = given.get("dtype", "auto") == "auto"
        return INT8 if self.draft_in_int8 and unnamed and name_platform() == "cpu" else None

    def _require_fitting(self, given: Mapping[str, Any]) -> None:
        """Check that the draft can be split over the target's devices and run in its type.

        Raises:
            SafeDraftError: the draft cannot be split over as many devices, or its numbers may not
                fit into the target's type.
        """
        target, draft = self.parts.descriptions
        devices = given.get("tensor_parallel_size", 1)
        if isinstance(devices, int) and not can_be_split(draft, devices):
            heads, shared = count_heads(draft)
            sizes = " or ".join(map(str, split_sizes(draft)))
            raise SafeDraftError(
                f"tensor_parallel_size: vLLM splits the draft as it splits the target, and "
                f"{draft.name} has {heads} attention heads, {shared} of keys and values: split the "
                f"pair over {sizes} devices, or choose another draft"
            )
        is_half = [str(_dtype(model)) == "torch.float16" for model in (target, draft)]
        if given.get("dtype", "auto") == "auto" and is_half == [True, False]:
            raise SafeDraftError(
                f"dtype: {target.name} is stored in float16, and vLLM would run the draft in it as "
                f"well, which is not stored so and may give numbers that are too large for it: "
                "choose bfloat16, or float16 to try it all the same"
            )

    def _settle_constants(self) -> RiskConfig:
        """The constants, with which drafts on CUDA do not end early unless the user wants it.

        A step runs as one CUDA graph only if all its rows have equally many drafts.
        """
        if "draft_confidence" in self.named or name_platform() != "cuda":
            return self.config
        return self.config.replace(draft_confidence=0.0)

    def _usual_by_load(self, given: Mapping[str, Any]) -> dict[int, int]:
        """The platform's table, if it differs from the T of the pair; one entry for one T."""
        if "draft_tokens" in self.named:
            return {}
        drafted = self.config.draft_tokens
        usual = [*DRAFT_TOKENS_UP_TO.get(name_platform(), {}).items()]
        entries = usual[:1] if _data_parallel(given) else usual
        capped = {load: min(drafted, most or drafted) for load, most in entries}
        return capped if {drafted} != {*capped.values()} else {}


def refuse_options(given: Iterable[str], reasons: Mapping[str, str] = _REFUSED) -> None:
    """Refuse options, by default those that no loading of a pair for vLLM has.

    Args:
        given: names of options.
        reasons: the options that are refused, each with its reason.

    Raises:
        SafeDraftError: one of them; the message says why.
    """
    for option in given:
        if reason := reasons.get(option):
            raise SafeDraftError(f"{option}: {reason}: leave it out")


_READS_ONCE = (
    "reading_bins: vLLM reads the risk of a request once, before the reply, so that one harmful "
    "question among several is found less often: decode with --engine cpu or transformers, or "
    "leave it 0"
)


def plan(
    spec: PairSpec,
    config: SSDConfig | None = None,
    report: ReportProgress = silent,
    *,
    from_ids: bool = False,
) -> EnginePlan:
    """Fetch a pair and check that vLLM can run it.

    vLLM gives both models one prompt, drafts for a whole batch at once, and reads no risk inside a
    reply. So a registered pair's ``draft_growth`` and ``reading_bins`` are set to 0, its drafts are
    chains, and T is at most ``MAX_DRAFT_TOKENS`` if its drafts end early. The constants that the
    user named are those set in ``config`` (``model_fields_set``). ``from_ids`` means that the ids
    of a prompt alone say whether the assistant's turn has begun.

    Raises:
        SafeDraftError: the pair needs two prompts, a file cannot be fetched or read, or the
            scheme depends on whether the assistant's turn has begun, which nothing says.
        IncompatiblePairError: the two models cannot decode together, or write their prompts
            differently.
    """
    if any(is_gguf(Path(model)) for model in (spec.target, spec.draft)):
        raise SafeDraftError(
            f"pair {spec.name}: vLLM has a reader of GGUF files of its own, which was not tested "
            "with a draft: name folders of safetensors, or decode with --engine transformers"
        )
    if spec.draft_system != spec.target_system:
        raise SafeDraftError(
            f"pair {spec.name}: target and draft have different system prompts, and vLLM gives "
            "both one prompt: use a trained draft without one (--target and --draft, --adapter)"
        )
    named = config.model_fields_set if config else frozenset()
    if config and "draft_growth" in named and config.draft_growth:
        raise SafeDraftError("draft_growth: vLLM drafts for all requests at once, leave it at 0")
    for name, of_chains in OF_CHAINS.items():
        if config and name in named and getattr(config, name) != of_chains:
            raise SafeDraftError(f"{name}: vLLM drafts chains, leave it out")
    chosen = RiskConfig.extend(config or spec.config)
    if "reading_bins" in named and chosen.reading_bins:
        raise SafeDraftError(_READS_ONCE)
    parts = fetch_parts(spec, report)
    require_one_template(parts.descriptions)
    changes: dict[str, Any] = {"draft_growth": 0.0, "reading_bins": 0, **OF_CHAINS}
    if chosen.reading_bins and parts.probe:
        warnings.warn(_READS_ONCE, UnguardedWarning, stacklevel=4)
        parts = parts._replace(warnings=(*parts.warnings, _READS_ONCE))
    if (chosen.draft_confidence or chosen.draft_growth) and "draft_tokens" not in named:
        changes["draft_tokens"] = min(chosen.draft_tokens, MAX_DRAFT_TOKENS)
    chosen = chosen.replace(**changes)
    tokenizer = _template_tokenizer(parts)
    if tokenizer is None or (from_ids and not generation_prompt(tokenizer)):
        chosen.first_scheme(turn_begun=None)  # refuses a scheme that would depend on it
    # vLLM takes target and draft only if they have equally many rows, used or not.
    draft = merged_draft(parts, report, rows=parts.descriptions[0].rows)
    return EnginePlan(parts, draft, chosen, frozenset(named), spec.draft_dtype == "int8")


def prepare_environment() -> None:
    """Set the variables of vLLM that SafeDraft's engine depends on."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"


def require_vllm() -> None:
    """Refuse an environment without vLLM.

    Raises:
        SafeDraftError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise SafeDraftError(
            "vLLM is not installed here: pip install 'safedraft[vllm]' in an environment of its "
            'own, or see the page "SSD in vLLM" of the documentation, which has that of processors'
        )


def _template_tokenizer(parts: Parts) -> PreTrainedTokenizerBase | None:
    """The target's tokenizer; None if it has no chat template."""
    tokenizer = parts.descriptions[0].tokenizer
    return tokenizer if tokenizer is not None and tokenizer.chat_template else None


def _dtype(model: ModelDescription) -> Any:
    """The type that a checkpoint's weights are stored in, as its configuration says."""
    return getattr(model.config, "dtype", None) or model.config.get_text_config().dtype


def _data_parallel(given: Mapping[str, Any]) -> bool:
    return bool(given.get("data_parallel_size", 1) != 1)


def _worker() -> str:
    platform = name_platform()
    if platform not in WORKERS:
        raise SafeDraftError(f"vLLM's platform {platform!r} is not supported with SSD")
    return WORKERS[platform]
