"""Shared by all tests: no hub, caches of their own, and tiny deterministic models."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import Environment
from helpers.laws import lattice_point

CONFORMANCE = Path(__file__).parent / "conformance"


@pytest.fixture(scope="session", autouse=True)
def _isolated_session(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fixtures of a session or a module do not see the user's cache either."""
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.option.markexpr != "real":
            patch.setenv("SAFEDRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _isolated(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests without a download see neither the hub nor the user's cache."""
    if request.node.get_closest_marker("real"):
        return
    torch.set_num_threads(1)  # models are tiny: threads only wait for each other
    from transformers.utils import logging

    logging.disable_progress_bar()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SAFEDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.getbasetemp().parent / "compiled"))


@pytest.fixture
def lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of a position are points of a lattice, as ``laws.law_of`` needs them."""
    monkeypatch.setattr("safedraft.core.decide.uniform", lattice_point)


TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def save_tokenizer(
    folder: Path, template: str | None = TEMPLATE, extra: tuple[str, ...] = ()
) -> int:
    """A byte-level tokenizer (one token a byte) with control tokens; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        additional_special_tokens=["<|start|>", *extra],
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder: Path, seed: int = 0, vocabulary: int = 264, **settings: object) -> None:
    """A tiny random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    options: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    LlamaForCausalLM(LlamaConfig(**{**options, **settings})).save_pretrained(folder)


def save_pair(folder: Path, **settings: Any) -> tuple[Path, Path]:
    """Two tiny models that speak bytes, in folders; the draft is the target with some noise."""
    from transformers import LlamaForCausalLM

    for name in ("target", "draft"):
        save_model(folder / name, **settings)
        save_tokenizer(folder / name)
    draft = LlamaForCausalLM.from_pretrained(folder / "draft")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += 0.05 * torch.randn_like(weight)
    draft.save_pretrained(folder / "draft")
    return folder / "target", folder / "draft"


def save_prompts(folder: Path, *names: str) -> None:
    """Files of prompts, one a line, by default harmful and ordinary ones."""
    for name in names or ("harmful", "ordinary"):
        lines = [f"{name} thing number {number}" for number in range(30)]
        (folder / f"{name}.txt").write_text("\n".join(lines), "utf-8")


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of ``save_pair``."""
    return save_pair(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_pair: tuple[Path, Path], tmp_path: Path) -> str:
    """The tiny pair's name among the user's pairs."""
    folder = tmp_path / "config" / "pairs"
    folder.mkdir(parents=True)
    target, draft = (json.dumps(str(path)) for path in tiny_pair)
    (folder / "tiny.toml").write_text(
        f"[tiny]\ntarget = {target}\ndraft = {draft}\nbare_draft = true\n"
        "[tiny.config]\ndraft_tokens = 4\n",
        encoding="utf-8",
    )
    return "tiny"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process; gives exit code, stdout, stderr."""

    from safedraft import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["safedraft", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def fresh_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A virtual environment with the built wheel, and no extra yet; it is removed at the end."""
    folder = tmp_path_factory.mktemp("fresh")
    environment = Environment.create(folder)
    environment.install()
    yield environment
    shutil.rmtree(folder)
