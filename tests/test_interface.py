"""What users of vLLM and Transformers type, and what a wrong word gives: one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import safedraft
from safedraft import cli
from safedraft.core.errors import SafeDraftError

USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> safedraft.Pair:
    return safedraft.load_pair(*tiny_pair, use_adapter=False, engine="transformers")


def text_of(pair: safedraft.Pair, **fields: Any) -> str:
    return pair.generate("hi", sampling=safedraft.SamplingParams(**fields)).text


def test_a_rule_takes_the_constants_of_the_pair(pair: safedraft.Pair) -> None:
    """Also those that it does not have, as long as they are the pair's."""
    own = pair.config.replace(alpha_union=pair.config.alpha_union)
    alone = pair.generate("hi", rule="target_only", config=own, max_new_tokens=4)
    assert len(alone.trace) == 4
    with pytest.raises(SafeDraftError, match="the rule has no constants: leave 'alpha_union' out"):
        pair.generate("hi", rule="target_only", config=own.replace(alpha_union=5.0))


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
        (
            {"sampling_params": {"max_tokens": 9, "temperature": 0.7, "seed": 3}, "top_k": None},
            {"max_new_tokens": 9, "temperature": 0.7, "seed": 3},
        ),
        (
            {"sampling": {"temperature": 0.7}, "do_sample": True, "seed": 3, "max_tokens": 9},
            {"max_new_tokens": 9, "temperature": 0.7, "seed": 3},
        ),
        (
            {"sampling": {"temperature": 0.7, "seed": 3}, "do_sample": False, "max_tokens": 9},
            {"max_new_tokens": 9},
        ),
        ({"max_tokens": 9, "n": 1, "use_tqdm": False, "logprobs": None}, {"max_new_tokens": 9}),
    ],
)
def test_options_go_by_the_names_of_other_libraries(
    pair: safedraft.Pair, options: dict[str, Any], fields: dict[str, Any]
) -> None:
    expected = text_of(pair, **fields)
    assert pair.generate("hi", **options).text == expected
    assert pair.stream("hi", **options).drain().text == expected
    assert pair.generate_many(["hi"], **options)[0].text == expected
    assert pair.stream_ids(pair.prompts("hi"), **options).drain().text == expected
    assert pair.generate_many_ids([pair.prompts("hi")], **options)[0].text == expected


def test_sampling_may_come_second_as_in_vllm(pair: safedraft.Pair) -> None:
    short, long = safedraft.SamplingParams(max_tokens=2), {"max_tokens": 4}
    expected = [text_of(pair, max_new_tokens=length) for length in (2, 4)]
    assert pair.generate("hi", short).text == pair.stream("hi", short).drain().text == expected[0]
    for ask in (pair.generate, pair.generate_many):
        assert [reply.text for reply in ask(["hi", "hi"], [short, long])] == expected
        given = {"sampling_params": [short, long]}
        assert [reply.text for reply in ask(["hi", "hi"], **given)] == expected


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"logprobs": 2}, 2),
        ({"logprobs": 0}, 0),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 2}, 2),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": None, "top_logprobs": 1}, 1),
    ],
)
def test_logprobs_is_the_number_of_alternatives(
    pair: safedraft.Pair, options: dict[str, Any], count: int | None
) -> None:
    token = pair.generate("hi", max_tokens=1, **options).trace[0]
    assert (None if token.logprob is None else len(token.top_logprobs)) == count


def test_a_part_of_a_character_has_bytes(pair: safedraft.Pair) -> None:
    others = pair.generate("hi", max_tokens=1, top_logprobs=200).trace[0].top_logprobs
    parts = [other for other in others if other.bytes is not None]
    assert 0 < len(parts) < len(others)
    assert all(len(other.bytes or ()) == 1 and other.bytes[0] >= 128 for other in parts)
    assert json.dumps(pair.generate("hi", max_tokens=1, top_logprobs=200).to_dict())


def test_a_mapping_of_constants_replaces_some_of_the_pairs(tiny_pair: tuple[Path, Path]) -> None:
    own = safedraft.load_pair(
        *tiny_pair, use_adapter=False, config={"bin_size": 3}, engine="transformers"
    )
    assert own.config == own.spec.config.replace(bin_size=3)
    reply = own.generate("hi", max_tokens=9, config={"alpha_union": 2.0, "threshold": 1.0})
    config = own.config.replace(alpha_union=2.0, threshold=1.0)
    assert (
        reply.to_dict()["trace"]
        == own.generate("hi", max_tokens=9, config=config).to_dict()["trace"]
    )
    assert reply.statistics.match_ratios
    assert len(reply.statistics.match_ratios) == 3
    assert reply.text == own.generate_many(["hi"], max_tokens=9, config=[config])[0].text


def test_a_developer_speaks_as_the_system(pair: safedraft.Pair) -> None:
    developer, system = (
        [{"role": role, "content": "Be brief."}, USER] for role in ("developer", "system")
    )
    expected = pair.generate(system, max_tokens=6).text
    assert pair.generate(developer, max_tokens=6).text == expected
    assert pair.generate([developer], max_tokens=6)[0].text == expected


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
        (lambda pair: pair.generate("hi", foo=1), "unknown option 'foo'; known are max_new_tok"),
        (lambda pair: pair.generate("hi", sampling={"foo": 1}), "unknown option 'foo'"),
        (
            lambda pair: pair.generate("hi", temperature=-1),
            "temperature: must be at least 0, not -1",
        ),
        (lambda pair: pair.generate("hi", max_tokens=1, max_new_tokens=2), "mean the same"),
        (lambda pair: pair.generate("hi", length_penalty=1.1), "length_penalty=1.1 is not"),
        (
            lambda pair: pair.generate("hi", max_length=9),
            "max_length=9 is not supp.* max_new_tokens",
        ),
        (
            lambda pair: pair.generate("hi", logit_bias={10**6: 1}),
            "logit_bias: 1000000: ids end at",
        ),
        (lambda pair: pair.generate("hi", sampling={"n": 2}), "n=2 is not supported"),
        (
            lambda pair: pair.generate("hi", sampling={}, sampling_params={}),
            "give sampling or samp",
        ),
        (lambda pair: pair.generate("hi", "x"), "sampling must be a safedraft.SamplingParams"),
        (lambda pair: pair.generate("hi", [{}]), "or a mapping, not list"),
        (lambda pair: pair.generate(["a", "b"], [{}]), "sampling has 1 values for 2 prompts"),
        (lambda pair: pair.generate_many(["a"], config=[]), "config has 0 values for 1 prompts"),
        (lambda pair: pair.generate("hi", top_logprobs="3"), "must be a whole number, not '3'"),
        (lambda pair: pair.generate("hi", top_logprobs=True), "must be a whole number, not True"),
        (lambda pair: pair.generate("hi", logprobs=-1), "must be 0 or more, not -1"),
        (lambda pair: pair.generate("hi", logprobs=2, top_logprobs=2), "top_logprobs or logprobs"),
        (lambda pair: pair.generate("hi", logprobs=False, top_logprobs=2), "not both"),
        (lambda pair: pair.generate("hi", config={"alfa": 1}), "unknown constant 'alfa'"),
        (lambda pair: pair.generate("hi", config={1: 1}), "unknown constant 1"),
        (
            lambda pair: pair.generate(
                "hi", rule="easd", config=safedraft.SSDConfig(alpha_union=2.0)
            ),
            "unknown constant 'alpha_union'",
        ),
        (lambda pair: pair.generate("hi", config={"kappa": 0}), "kappa: must be at least 1, not 0"),
        (lambda pair: pair.generate("hi", config=safedraft.SamplingParams()), "not SamplingParams"),
        (lambda pair: pair.generate("hi", config="x"), "config must be a safedraft.SSDConfig"),
        (lambda pair: pair.generate("hi", rule=3), "rule must be"),
        (lambda pair: pair.stream_ids([1], sampling={"beams": 4}), "unknown option 'beams'"),
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


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "float32"}, torch.float32),
        ({"torch_dtype": "fp32"}, torch.float32),
        ({"torch_dtype": torch.float32}, torch.float32),
        ({"dtype": "half"}, torch.float16),
        ({"dtype": torch.float16}, torch.float16),
        ({"dtype": "bf16"}, torch.bfloat16),
        ({"dtype": None, "device": "cpu"}, None),
    ],
)
def test_dtypes_are_names_or_torchs_own(
    tiny_pair: tuple[Path, Path], options: dict[str, Any], dtype: torch.dtype | None
) -> None:
    loaded = safedraft.load_pair(*tiny_pair, use_adapter=False, **options)
    assert loaded.target.weights is None if dtype is None else loaded.target.model.dtype == dtype


def test_attention_is_chosen_for_both_models(tiny_pair: tuple[Path, Path]) -> None:
    loaded = safedraft.load_pair(*tiny_pair, use_adapter=False, attn_implementation="eager")
    for model in (loaded.target.model, loaded.draft.model):
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("engine", ["auto", "transformers"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, "no option is called 'foo'; known are .*dtype"),
        ({"foo": None}, "no option is called 'foo'"),
        ({"device_mop": "auto"}, "did you mean 'device_map'"),
        ({"adaptor": "x"}, "no option is called 'adaptor' .load_pair has 'adapter'.; known are"),
        ({"revision": "main"}, "revision: name it with the model, as owner/name@revision"),
        ({"trust_remote_code": True}, "own code are refused"),
        ({"tensor_parallel_size": 2}, "add engine='vllm'"),
        ({"max_memory": {"cpu": "1GB"}}, "add device_map='auto'"),
        ({"dtype": "x"}, "unknown dtype 'x'; choose from auto, "),
        ({"attn_implementation": "x"}, "cannot be loaded"),
        ({"config": {"alfa": 1}}, "unknown constant 'alfa'"),
        ({"config": safedraft.SamplingParams()}, "not SamplingParams"),
        ({"config": {"alpha_union": "x"}}, "alpha_union: must be a number, not 'x'"),
        ({"draft_model": "x"}, "give draft or draft_model"),
    ],
)
def test_a_refused_option_of_loading_is_one_line(
    tiny_pair: tuple[Path, Path], engine: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SafeDraftError, match=message) as caught:
        safedraft.load_pair(*tiny_pair, use_adapter=False, engine=engine, **options)
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_of_a_loaded_pair_is_taken(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = tiny_pair
    loaded = safedraft.load_pair(
        model=target,
        draft_model=draft,
        use_adapter=False,
        engine="transformers",
        trust_remote_code=False,
        device_map={"": "cpu"},
        max_memory={"cpu": "1GB"},
    )
    assert (loaded.target.name, loaded.draft.name) == (str(target), str(draft))


def test_an_adapter_may_come_third(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(SafeDraftError, match="gone"):
        safedraft.load_pair(*tiny_pair, tiny_pair[0].parent / "gone")


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
    stream = pair.stream("hi", max_tokens=30)
    assert repr(stream).startswith("Stream(open, GenerationResult(''")
    stream.drain()
    assert repr(stream) == f"Stream(ended, {reply!r})"


def test_a_notebook_shows_where_tokens_come_from(pair: safedraft.Pair) -> None:
    reply = pair.generate("hi", max_tokens=30)
    page = reply._repr_html_()
    assert page.count("<span") == 30
    assert page.count("the draft&#x27;s token") == reply.statistics.matches > 0
    assert "<script" not in page


def test_the_command_ends_at_tokens_that_it_names(
    pair: safedraft.Pair,
    tiny_pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = [token.id for token in pair.generate("hi", max_tokens=30).trace]
    end, other = whole[4], next(id for id in range(250) if id not in whole)
    models = ["--target", str(tiny_pair[0]), "--draft", str(tiny_pair[1]), "--no-adapter"]
    stops = ["--stop-token-id", str(other), "--stop-token-id", str(end)]
    command = ["safedraft", "generate", "--engine", "transformers", *models, *stops, "--json", "hi"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        cli.main()
    reply = json.loads(capsys.readouterr().out)
    assert [token["id"] for token in reply["trace"]] == whole[: whole.index(end) + 1]
    assert reply["finish_reason"] == "stop"


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert safedraft.__version__ == version("safedraft")
    assert {"__version__", "Pair"} < set(dir(safedraft))
    command = [sys.executable, "-m", "safedraft", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"safedraft {safedraft.__version__}\n"
