"""Labels that people gave to the models' own replies, kept by fingerprint and without any text.

The replies stay in local logs; a label is found again by the fingerprint of everything that the
model was given and of what it added. ``benchmarks/label_replies.py`` lists replies for a person to
read, and records the labels.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.core.files import write_atomically
from safedraft.evaluation.judges.exchange import Exchange, build_exchange
from safedraft.evaluation.judges.labels import LabeledCompletion
from safedraft.evaluation.logs import find_logs, load_log, read_header
from safedraft.evaluation.records import LEFT_OUT
from safedraft.models.fingerprint import digest
from safedraft.prompts.phrases import Verdict

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

CLASSES: tuple[Verdict, ...] = get_args(Verdict)

_HEADER = """\
# Classes of the models' own replies, each read by itself, without the defense and without any
# verdict. No text is kept: `fingerprint` is that of everything the model was given and of its
# reply (`evaluation/judges/replies.py`). `origin` is the pair, the configuration and the suite.
# The page "Judges and the report" of the documentation says how it is written.
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply in a log."""

    exchange: Exchange
    language: str
    origin: str
    """Pair, configuration and suite."""

    @property
    def fingerprint(self) -> str:
        """The first 32 hexadecimal digits of a SHA-256."""
        parts = (self.exchange.given, self.exchange.added)
        return digest("\0".join(parts).encode(errors="surrogatepass"))[:32]


@dataclass(frozen=True, slots=True)
class ReplyLabel:
    """The label that a person gave to a reply."""

    fingerprint: str
    language: str
    label: Verdict
    origin: str

    def __post_init__(self) -> None:
        if self.label not in CLASSES:
            raise SafeDraftError(
                f"the reply {self.fingerprint} has the label {self.label!r}: use one of "
                f"{', '.join(CLASSES)}"
            )


def labels_file() -> Path:
    """The file of labels that is part of SafeDraft."""
    return Path(str(files("safedraft.evaluation").joinpath("data", "replies_labeled.toml")))


def load_labels(file: Path | None = None) -> dict[str, ReplyLabel]:
    """Labels by fingerprint, by default those that are part of SafeDraft.

    Raises:
        SafeDraftError: the file cannot be read, or has something else than labels.
    """
    file = file or labels_file()
    try:
        entries = tomllib.loads(file.read_text("utf-8")).get("reply", [])
        labels = [ReplyLabel(**entry) for entry in entries]
    except (OSError, TypeError, tomllib.TOMLDecodeError) as error:
        raise SafeDraftError(
            f"{file}: has no labels that can be read ({first_line(error)})"
        ) from error
    return {one.fingerprint: one for one in labels}


def save_labels(labels: Mapping[str, ReplyLabel], file: Path) -> None:
    """Write labels, in the order of their fingerprints."""
    entries = [
        f'[[reply]]\nfingerprint = "{one.fingerprint}"\nlanguage = "{one.language}"\n'
        f'label = "{one.label}"\norigin = "{one.origin}"\n'
        for _, one in sorted(labels.items())
    ]
    write_atomically(file, "\n".join([_HEADER, *entries]))


def read_replies(paths: Iterable[str | Path]) -> dict[str, Reply]:
    """The replies in logs or folders of them, by fingerprint; equal ones once.

    Tasks with one right answer, failed samples and samples that were left out have none.

    Raises:
        SafeDraftError: a path has no log, or a log was not written by SafeDraft.
    """
    replies: dict[str, Reply] = {}
    for file in find_logs(paths):
        log = load_log(file, header_only=False)
        run = read_header(file, log)
        if run.kind == "accuracy":
            continue
        origin = f"{run.pair}, {run.name}, {run.suite}"
        for sample in log.samples or []:
            if not sample.error and LEFT_OUT not in sample.metadata:
                reply = _read_reply(sample, origin)
                replies.setdefault(reply.fingerprint, reply)
    return replies


def _read_reply(sample: EvalSample, origin: str) -> Reply:
    exchange = build_exchange(
        sample.metadata, sample.messages, sample.output.completion, str(sample.input)
    )
    language = str(sample.metadata.get("record", {}).get("language", ""))
    return Reply(exchange, language, origin)


def join_labels(
    replies: Mapping[str, Reply], labels: Mapping[str, ReplyLabel]
) -> list[LabeledCompletion]:
    """Join replies with their labels; replies without a label are left out.

    Raises:
        SafeDraftError: no reply has a label.
    """
    joined = [
        LabeledCompletion(
            text=reply.exchange.added,
            label=frozenset([labels[fingerprint].label]),
            part="replies",
            request=reply.exchange.request,
            after=reply.exchange.begun,
            given=reply.exchange.given,
            language=reply.language,
        )
        for fingerprint, reply in replies.items()
        if fingerprint in labels
    ]
    if not joined:
        raise SafeDraftError(
            f"none of the {len(replies)} replies in these logs has a label: label some first, as "
            'the page "Judges and the report" of the documentation shows'
        )
    return joined
