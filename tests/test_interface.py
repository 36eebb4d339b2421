"""What users of vLLM and Transformers type, and what a wrong word gives: one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import safedraft
from safedraft.core.errors import SafeDraftError

USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> safedraft.Pair:
    return safedraft.load_pair(*tiny_pair, use_adapter=False, engine="transformers")


def text_of(pair: safedraft.Pair, **fields: Any) -> str:
    return pair.generate("hi", sampling=safedraft.SamplingParams(**fields)).text


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"max_new_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        (
            {"max_tokens": 5, "temperature": 0.7, "seed": 3, "top_k": 4, "top_p": 0.9},
            {"max_new_tokens": 5, "temperature": 0.7, "seed": 3, "top_k": 4, "top_p": 0.9},
        ),
        ({"max_tokens": 9, "stop": "x"}, {"max_new_tokens": 9, "stop": ("x",)}),
        ({"max_tokens": 9, "stop": ["x", "y"]}, {"max_new_tokens": 9, "stop": ("x", "y")}),
        ({"sampling": {"max_tokens": 6, "stop": "x"}}, {"max_new_tokens": 6, "stop": ("x",)}),
        (
            {"sampling": safedraft.SamplingParams(max_new_tokens=40, seed=1), "max_tokens": 3},
            {"max_new_tokens": 3, "seed": 1},
        ),
    ],
)
def test_options_go_by_the_names_of_other_libraries(
    pair: safedraft.Pair, options: dict[str, Any], fields: dict[str, Any]
) -> None:
    expected = text_of(pair, **fields)
    assert pair.generate("hi", **options).text == expected
    assert pair.stream("hi", **options).drain().text == expected


def test_sampling_params_take_both_names() -> None:
    one, other = (
        safedraft.SamplingParams(**{name: 5}) for name in ("max_tokens", "max_new_tokens")
    )
    assert one == other
    assert safedraft.SamplingParams(stop="x").stop == ("x",)


def test_a_list_of_prompts_gives_a_list_of_replies(pair: safedraft.Pair) -> None:
    prompts = ["one", "two"]
    together = pair.generate(prompts, system="Be brief.", max_tokens=8)
    alone = [pair.generate(prompt, system="Be brief.", max_tokens=8) for prompt in prompts]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    conversations = [[USER], [USER, {"role": "assistant", "content": "Sure,"}]]
    assert len(pair.generate(conversations, max_tokens=2)) == 2
    assert pair.generate(conversations[:1], max_tokens=2)[0].text == text_of(pair, max_new_tokens=2)


def test_a_system_prompt_and_parts_of_text_are_messages(pair: safedraft.Pair) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    plain = pair.generate("hi", system="Be brief.", max_tokens=6)
    assert pair.generate(messages, max_tokens=6).text == plain.text
    assert plain.text != pair.generate("hi", max_tokens=6).text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pair: pair.generate("hi", foo=1), "unknown option 'foo'; sampling has max_new_t"),
        (lambda pair: pair.generate("hi", sampling={"foo": 1}), "unknown option 'foo'"),
        (
            lambda pair: pair.generate("hi", temperature=-1),
            "temperature: must be at least 0, not -1",
        ),
        (lambda pair: pair.generate("hi", max_tokens=1, max_new_tokens=2), "mean the same"),
        (lambda pair: pair.generate(3), "a prompt is a text or a list of messages, not int"),
        (lambda pair: pair.generate([1, 2]), "token ids go to stream_ids"),
        (lambda pair: pair.generate([]), "the prompt is empty"),
        (lambda pair: pair.generate(["a", 3]), "not int"),
        (
            lambda pair: pair.generate([{"role": "user", "content": [{"type": "image_url"}]}]),
            "a part of type 'image_url': only text can be read",
        ),
        (
            lambda pair: pair.generate([{"role": "system", "content": "a"}, USER], system="b"),
            "leave out system",
        ),
    ],
)
def test_what_is_refused_is_one_line(pair: safedraft.Pair, call: Any, message: str) -> None:
    with pytest.raises(SafeDraftError, match=message) as caught:
        call(pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtypes_are_names_or_torchs_own(
    tiny_pair: tuple[Path, Path], name: str, dtype: Any
) -> None:
    loaded = safedraft.load_pair(*tiny_pair, use_adapter=False, **{name: dtype})
    assert loaded.target.model.dtype == torch.float32


def test_two_names_are_a_target_and_a_draft_unless_the_first_is_a_pair(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    target, draft = map(str, tiny_pair)
    loaded = safedraft.load_pair(target, draft, use_adapter=False)
    assert (loaded.target.name, loaded.draft.name) == (target, draft)
    folder = tmp_path / "config" / "pairs"
    folder.mkdir(parents=True)
    (folder / "own.toml").write_text(f'[own]\ntarget = "{target}"\ndraft = "gone"\n')
    loaded = safedraft.load_pair("own", draft, use_adapter=False)
    assert (loaded.spec.name, loaded.draft.name) == ("own", draft)


def test_a_pair_and_a_reply_show_themselves_in_a_line(pair: safedraft.Pair) -> None:
    reply = pair.generate("hi", max_tokens=30)
    assert repr(pair).startswith("Pair(")
    assert repr(pair).endswith("adapter=None, engine='transformers')")
    assert repr(reply).startswith("GenerationResult(")
    assert repr(reply).endswith("finish_reason='length', tokens=30)")
    assert len(repr(reply)) < 400


def test_a_notebook_shows_where_tokens_come_from(pair: safedraft.Pair) -> None:
    reply = pair.generate("hi", max_tokens=30)
    page = reply._repr_html_()
    assert page.count("<span") == 30
    assert page.count("the draft&#x27;s token") == reply.statistics.matches > 0
    assert "<script" not in page


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert safedraft.__version__ == version("safedraft")
    command = [sys.executable, "-m", "safedraft", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"safedraft {safedraft.__version__}\n"
