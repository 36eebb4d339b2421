"""The command line as a user meets it: outputs, exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFORMANCE, save_model, save_pair, save_tokenizer
from helpers.gguf import make, write_gguf
from helpers.templates import TRAITS
from test_load import save_adapter
from typer.main import get_command

from safedraft import cli
from safedraft.cli.chat import chat
from safedraft.cli.generate import generate
from safedraft.cli.models import ModelChoice
from safedraft.cli.sampling import SamplingChoice
from safedraft.core.config import SamplingParams
from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.models import proposals
from safedraft.models.fingerprint import FACTS, AdapterFacts, fingerprint
from safedraft.models.registry import DraftCandidate, config_folder
from safedraft.server.settings import Limits

TRANSFORMERS = ("--engine", "transformers")


@pytest.fixture
def models(tiny_pair: tuple[Path, Path]) -> list[str]:
    return ["--target", str(tiny_pair[0]), "--draft", str(tiny_pair[1])]


def error_of(outcome: tuple[int, str, str]) -> str:
    """The message of a run that failed as it should: exit code 2, one line, nothing else said."""
    code, out, err = outcome
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_help_and_import_load_no_models() -> None:
    code = (
        "import sys, safedraft, safedraft.cli; "
        "heavy = ('torch', 'transformers', 'huggingface_hub', 'inspect_ai', 'pydantic'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_every_command_explains_itself(run: Any) -> None:
    for command in ("pull", "pairs", "doctor", "generate", "chat", "replay", "bench", "eval"):
        code, out, _ = run(command, "--help")
        assert (code, "Usage" in out) == (0, True)


@pytest.mark.parametrize(("command", "without"), [(generate, set()), (chat, {"json_schema"})])
def test_every_sampling_option_reaches_the_command(command: Any, without: set[str]) -> None:
    own = {"logit_bias": None, "structured_outputs": "json_schema"}  # no numbers by token on a line
    named = {own.get(name, name) for name in SamplingParams.model_fields} - {None} - without
    options = set(signature(command).parameters)
    assert {item.name for item in fields(SamplingChoice)} & options == named


def test_the_sampling_of_a_command_line_is_that_of_the_library(
    run: Any, monkeypatch: pytest.MonkeyPatch, models: list[str]
) -> None:
    made: list[SamplingParams] = []

    def stop_at(self: ModelChoice, rule: str | None = None) -> None:
        raise SafeDraftError("loaded")

    parameters = SamplingChoice.parameters

    def record(self: SamplingChoice) -> SamplingParams:
        made.append(parameters.fget(self))  # type: ignore[attr-defined]
        return made[-1]

    monkeypatch.setattr(SamplingChoice, "parameters", property(record))
    monkeypatch.setattr(ModelChoice, "load", stop_at)
    values = {"max_new_tokens": 9, "temperature": 0.5, "top_k": 4, "top_p": 0.75, "min_p": 0.25}
    values |= {"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 2, "seed": 3}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    words += ["--stop", "a", "--stop", "b", "--stop-token-id", "5"]
    for command in (["generate", "hi"], ["chat"]):
        assert "loaded" in error_of(run(*command, *words, *models))
    assert made == [SamplingParams(**values, stop=("a", "b"), stop_token_ids=(5,))] * 2


def list_commands(group: Any, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The command line's commands by their words, groups with an option of their own included."""
    for name, command in group.commands.items():
        yield (*before, name), command
        if hasattr(command, "commands"):
            yield from list_commands(command, *before, name)


COMMANDS = dict(list_commands(get_command(cli.app)))


@pytest.mark.parametrize("words", COMMANDS)
def test_an_option_of_one_value_is_not_given_twice(run: Any, words: tuple[str, ...]) -> None:
    """Which value holds would be a guess, and --rule or --no-adapter decide on the defense."""
    options = [p for p in COMMANDS[words].params if p.param_type_name == "option"]
    once = [option for option in options if not option.multiple]
    for option in once:
        for name in (*option.opts, *option.secondary_opts):
            given = [option.opts[0], *["1"] * (not option.is_flag)]
            twice = [name, *["2"] * (not option.is_flag)]
            refused = error_of(run(*words, *given, *twice))
            names = "/".join([*option.opts, *option.secondary_opts])
            assert refused == f"error: {names} is given twice: leave one of them out\n"
    assert once or words == ("report",)


@pytest.mark.parametrize(
    ("arguments", "repeated"),
    [
        (["chat", "--set", "bin_size=3", "--set", "bin_size=4"], "--set bin_size"),
        (["chat", "--template", "a=1", "--template", "a=2"], "--template a"),
        (["chat", "--engine-option", "a=1", "--engine-option", "a=2"], "--engine-option a"),
        (["serve", "--max", "active=1", "--max", "active=2"], "--max active"),
        (["calibrate", "--try", "bin_size=3", "--try", "bin_size=4"], "--try bin_size"),
        (["eval", "--max-new-tokens", "3", "--max-new-tokens", "4"], "--max-new-tokens"),
        (
            ["eval", *["--suite", "direct", "--max-new-tokens", "direct=3"] * 2],
            "--max-new-tokens direct",
        ),
        (["eval", "--defense", "ssd:bin_size=3,bin_size=4"], "bin_size"),
        (
            ["serve", "--engine", "vllm", *["--draft-tokens-up-to", "8:4"] * 2],
            "--draft-tokens-up-to 8",
        ),
    ],
)
def test_a_name_in_an_option_is_not_given_twice(
    run: Any, models: list[str], arguments: list[str], repeated: str
) -> None:
    own = [] if arguments[0] == "calibrate" else models
    assert f"{repeated} is given twice" in error_of(run(*arguments, *own))


@pytest.mark.parametrize("command", [["chat"], ["serve"], ["eval"], ["calibrate"]], ids=" ".join)
def test_an_option_of_the_engine_has_one_value_and_is_one_of_an_engine(
    run: Any, command: list[str]
) -> None:
    given = ["--dtype", "bfloat16", "--engine-option", "dtype=float32"]
    said = "--engine-option dtype=float32: --dtype is bfloat16: set --dtype alone"
    assert said in error_of(run(*command, *given))
    for name in ("spec", "config", "engine", "report"):
        said = error_of(run(*command, "--engine-option", f"{name}=1"))
        assert f"--engine-option {name}: no engine has it" in said


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["generate", "hi", "", "--target", "/no/such"], "--pair"),
        (["chat", "--template-from", "", "--target", "/no/such"], "--template-from"),
        (["bench", "--draft-dtype", "", "--target", "/no/such"], "--draft-dtype"),
        (["serve", "", "--target", "/no/such"], "--pair"),
        (["serve", "--served-model-name", "", "--target", "/no/such"], "--served-model-name"),
        (["doctor", ""], "--target"),
        (["doctor", "big", ""], "--draft"),
    ],
)
def test_an_empty_name_is_not_taken_for_the_default(
    run: Any, words: list[str], option: str
) -> None:
    assert f"{option} is empty" in error_of(run(*words))


def test_options_that_may_be_given_again_still_may(run: Any, models: list[str]) -> None:
    code, out, _ = run("generate", "hi", *["--stop", "a"] * 2, "--json", *models)
    assert code == 0
    assert json.loads(out)["text"]


def test_the_help_of_max_names_every_limit(run: Any) -> None:
    _, out, _ = run("serve", "--help")
    shown = " ".join(word for word in out.split() if word != "│")
    assert f"A limit: {', '.join(Limits.model_fields)}." in shown


def test_generate_prints_the_reply_and_nothing_else_to_stdout(
    run: Any, models: list[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    code, out, err = run("generate", "hi", "--max-new-tokens", "20", "--trace", str(trace), *models)
    recorded = json.loads(trace.read_text())
    assert code == 0
    assert out == recorded["text"] + "\n"
    assert "match ratio per bin" in err
    assert "20 tokens" in err
    assert "".join(token["text"] for token in recorded["trace"]) == recorded["text"]


def test_generate_from_gguf_files(run: Any, tmp_path: Path) -> None:
    for name, kind in (("big", "Q8_0"), ("small", "Q4_0")):
        write_gguf(tmp_path / f"{name}.gguf", make("qwen2"), "qwen2", kind)
    models = ["--target", str(tmp_path / "big.gguf"), "--draft", str(tmp_path / "small.gguf")]
    options = ["generate", "hi", "--max-new-tokens", "9", "--json"]
    code, named, _ = run(*options, *models, "--no-adapter")
    assert code == 0
    assert 0 < json.loads(named)["statistics"]["tokens"] <= 9
    pairs = tmp_path / "config" / "pairs"
    pairs.mkdir(parents=True)
    (pairs / "own.toml").write_text(
        f'[own]\ntarget = "{models[1]}"\ndraft = "{models[3]}"\nbare_draft = true\n'
    )
    _, from_file, _ = run(*options, "--pair", "own")
    assert json.loads(from_file)["text"] == json.loads(named)["text"]
    (tmp_path / "big.gguf").write_bytes(b"GGUF")
    words = "big.gguf: an incomplete or damaged GGUF file: fetch it again"
    assert words in error_of(run("generate", "hi", *models))
    assert words in error_of(run("doctor", models[1], models[3]))


def test_a_bare_draft_is_a_line_on_stderr(run: Any, models: list[str]) -> None:
    options = ["generate", "hi", "--max-new-tokens", "2", *models]
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnguardedWarning)
        _, plain, warned = run(*options)
        _, accepted, silent = run(*options, "--no-adapter")
    assert plain == accepted
    first, *_ = warned.splitlines()
    assert first.startswith("warning: the draft ")
    assert first.endswith("(use_adapter=False)")
    assert "warning" not in silent


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--max-new-tokens", "2"],
        ["bench", "--prompts", "1", "--max-new-tokens", "2"],
        pytest.param(
            ["eval", "--defense", "ssd", "--suite", "ordinary", "--limit", "1"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_command_that_decodes_warns_of_a_bare_draft_once(
    run: Any, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/quit\n"))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnguardedWarning)
        code, _, warned = run(*command, *models)
    assert code == 0, warned
    assert warned.count("has no safety adapter") == (2 if command[0] == "eval" else 1)


def test_a_rule_may_be_named(run: Any, models: list[str]) -> None:
    options = ["--json", "--max-new-tokens", "9", *models]
    schemes = {}
    for rule in ("ssd", "target_only"):
        code, out, _ = run("generate", "hi", "--rule", rule, *options)
        assert code == 0
        schemes[rule] = {token["scheme"] for token in json.loads(out)["trace"]}
    assert schemes["ssd"] <= {"intersection", "union"}
    assert schemes["target_only"] == {None}
    assert "no rule is called 'sdd'" in error_of(run("chat", "--rule", "sdd", *models)).lower()


def test_a_rule_has_its_own_constants(run: Any, models: list[str]) -> None:
    options = ["--json", "--max-new-tokens", "24", *models]
    always = ["entropy_threshold=0", "overlap_threshold=0"]  # positions are penalized
    settings = [word for setting in always for word in ("--set", setting)]
    signals = []
    for changed in ([], settings):
        code, out, _ = run("generate", "hi", "--rule", "easd", *changed, *options)
        assert code == 0
        signals.append(json.loads(out)["statistics"]["signals"])
    assert signals[0] < signals[1]
    for command in ("generate", "chat"):
        asked = ["hi"] if command == "generate" else []
        for rule, setting, reason in (
            ("target_only", "alpha_union=2", "the rule target_only has no constants"),
            ("easd", "alpha_union=2", "--set alpha_union=2: write NAME=VALUE with one of"),
            ("easd", "entropy_threshold=-1", "entropy_threshold"),
        ):
            named = ["--rule", rule, "--set", setting]
            assert reason in error_of(run(command, *asked, *named, *models))


def test_generate_under_a_json_schema(run: Any, models: list[str], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    code, out, _ = run("generate", "hi", "--json-schema", str(schema), *models)
    assert code == 0
    assert json.loads(out) in ("yes", "no")
    schema.write_text('{"type": "nonsense"}', encoding="utf-8")
    code, _, err = run("generate", "hi", "--json-schema", str(schema), *models)
    assert code == 2
    assert "error: structured_outputs: Invalid type: nonsense" in err


def test_generate_json_is_one_object(run: Any, models: list[str]) -> None:
    code, out, _ = run("generate", "hi", "--json", "--max-new-tokens", "9", *models)
    assert code == 0
    assert json.loads(out)["statistics"]["tokens"] == 9


def test_compare_shows_both(run: Any, models: list[str]) -> None:
    options = ["--compare", "--prefill", "Sure", "--max-new-tokens", "15"]
    code, out, _ = run("generate", "hi", *options, *models)
    assert code == 0
    assert "the target alone" in out
    assert "SSD alone decoded" in out
    code, out, _ = run("generate", "hi", *options, "--json", *models)
    replies = json.loads(out)
    assert set(replies) == {"target_only", "ssd"}
    assert replies["target_only"]["statistics"]["draft_passes"] == 0


def test_compare_names_the_rule(run: Any, models: list[str]) -> None:
    options = ["--compare", "--max-new-tokens", "15", *models]
    code, out, _ = run("generate", "hi", "--rule", "speculative", *options)
    assert code == 0
    assert "the rule speculative" in out
    assert "The rule speculative decoded" in out
    assert "SSD" not in out
    refused = error_of(run("generate", "hi", "--rule", "target_only", *options))
    assert "name that one" in refused


def test_ctrl_c_keeps_what_was_said_and_exits_130(
    run: Any, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safedraft.engines.transformers.session import TransformersSession

    forward, calls = TransformersSession.forward, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(TransformersSession, "forward", interrupted)
    trace = tmp_path / "trace.json"
    code, out, _ = run("generate", "hi", "--trace", str(trace), *models, *TRANSFORMERS)
    recorded = json.loads(trace.read_text())
    assert code == 130
    assert recorded["finish_reason"] == "interrupted"
    assert recorded["trace"]
    assert out == recorded["text"] + "\n"


def test_pairs_lists_the_default_pair(run: Any) -> None:
    code, out, _ = run("pairs", "--json")
    assert code == 0
    assert json.loads(out)["qwen2.5-coder"]["draft"] == "qwen2.5-coder-0.5b-instruct"
    code, out, _ = run("pairs", "--constants")
    assert code == 0
    assert "alpha_union" in out


def test_doctor_says_yes_and_no(run: Any, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    target, draft = map(str, tiny_pair)
    code, out, _ = run("doctor", target, draft)
    assert code == 0
    assert "can decode together" in out
    save_model(tmp_path, vocabulary=300, eos_token_id=299)
    code, out, _ = run("doctor", str(tmp_path), draft, "--json")
    report = json.loads(out)
    assert (code, report["compatible"]) == (1, False)
    assert any(check["status"] == "failure" for check in report["checks"])


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["! adapter: none: replies are no safer", "Next: safedraft train-draft --target "]),
        (["--no-adapter"], ["✓ adapter: none", "--no-adapter --compare 'A request that"]),
        (["--adapter", "LORA"], ["✓ adapter:", "--adapter LORA --compare"]),
        (
            ["--adapter", "FOREIGN"],
            [
                "✗ adapter: the adapter in",
                "trained on other weights",
                "repair what is marked ✗ (adapt",
            ],
        ),
        (
            ["--adapter", "FOREIGN", "--other-base"],
            ["! adapter: the adapter in", "Next: safedraft g"],
        ),
        (
            ["--template-from", "target", "--template", "date_string=May"],
            [
                "both models write conversations alike",
                '✓ template settings: template = { date_string = "May" }, template_from = "target"',
            ],
        ),
    ],
)
def test_doctor_looks_at_adapter_template_memory_and_license_and_says_what_is_next(
    run: Any, tmp_path: Path, arguments: list[str], lines: list[str]
) -> None:
    target, draft = save_pair(tmp_path / "pair")
    save_tokenizer(target, template=TRAITS["a date line"])
    (target / "README.md").write_text("---\nlicense: llama3.2\n---\nA model.\n")
    names = {"LORA": tmp_path / "lora", "FOREIGN": tmp_path / "foreign"}
    for name, base in (("LORA", draft), ("FOREIGN", target)):
        save_adapter(names[name], draft)
        facts = AdapterFacts(base=fingerprint(base), target="0" * 32, versions={})
        (names[name] / FACTS).write_text(facts.model_dump_json())
    given = [str(names.get(word, word)) for word in arguments]
    code, out, _ = run("doctor", str(target), str(draft), *given)
    assert code == any("✗" in line for line in lines)
    for word, folder in names.items():
        lines = [line.replace(word, str(folder)) for line in lines]
    for line in [
        *lines,
        "memory: weights 0.0 + 0.0 GB in bfloat16",
        "devices: vLLM can split both over 1 or 2 or 4",
        f"license: {target}: llama3.2",
    ]:
        assert line in out
    apart = "Today: " in out
    assert apart is ("--template-from" not in arguments)
    assert ('template_from = "target" (--template-from) gives both' in out) is apart


def test_doctor_proposes_drafts_for_a_target(
    run: Any, tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tiny_pair[0])
    code, out, _ = run("doctor", target)
    assert code == 1
    assert f"SafeDraft knows no small model with the tokenizer of {target}." in out
    assert out.endswith(f"safedraft doctor {target} DRAFT\n")
    candidate = DraftCandidate(
        name="owner/tiny",
        family="Tiny",
        model_types=("llama",),
        tokens={"<|end|>": 256},
        weights=0.00001,
        license="MIT",
        template={"date_string": "1 May"},
    )
    monkeypatch.setattr(proposals, "draft_candidates", lambda: [candidate])
    code, out, _ = run("doctor", target)
    assert code == 0
    assert out.splitlines() == [
        "owner/tiny: 1e-05 billion parameters, of the family Tiny, MIT, no adapter yet",
        f"  Next: safedraft doctor {target} owner/tiny --template 'date_string=1 May'",
    ]
    code, out, _ = run("doctor", target, "--json")
    report = json.loads(out)
    assert (code, report["problems"], report["target"]) == (0, [], target)
    assert report["drafts"][0]["draft"] == "owner/tiny"
    error = error_of(run("doctor", target, "--adapter", "lora"))
    assert f"--adapter is about a pair: name a draft after {target}" in error


def test_doctor_says_why_no_draft_can_guard_a_target(run: Any, tmp_path: Path) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path, template=TRAITS["channels"])
    code, out, _ = run("doctor", str(tmp_path))
    assert code == 1
    assert out.startswith("✗ ")
    assert "channels" in out
    assert f"No draft can guard {tmp_path}" in out


def test_a_pair_is_added_and_found(run: Any, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    target, draft = map(str, tiny_pair)
    models = ("--target", target, "--draft", draft)
    code, out, err = run("pairs", "add", "own", *models, "--set", "alpha_union=2.0")
    file = config_folder() / "pairs/own.toml"
    assert (code, out) == (0, f"{file}\n")
    assert "! adapter: none: replies are no safer" in err
    assert "Next: safedraft train-draft --pair own --output my-draft" in err
    assert "alpha_union = 2.0" in file.read_text()
    save_adapter(tmp_path / "lora", tiny_pair[1])
    lora = ("--adapter", str(tmp_path / "lora"), "--description", "Guarded")
    code, _, err = run("pairs", "add", "guarded", "--pair", "own", *lora)
    assert code == 0
    assert err.endswith("Next: safedraft calibrate guarded\n")
    added = json.loads(run("pairs", "--json")[1])["guarded"]
    assert added["config"]["alpha_union"] == 2.0
    assert (added["adapter"], added["description"]) == (str(tmp_path / "lora"), "Guarded")
    for named in (["guarded"], ["--pair", "guarded"]):
        assert "✓ vocabulary" in run("doctor", *named)[1]


def test_a_pair_that_cannot_be_added_is_refused(
    run: Any, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    target, draft = map(str, tiny_pair)
    save_model(tmp_path, vocabulary=300, eos_token_id=299)
    for arguments, message in [
        (("own",), "name --target and --draft, or another pair"),
        (("own", "--target", target), "name --target and --draft"),
        (("own", "--target", str(tmp_path), "--draft", draft), "cannot decode together"),
        (("a/b", "--target", target, "--draft", draft), "cannot be the name"),
        (("qwen2.5-coder", "--target", target, "--draft", draft), "choose another name"),
    ]:
        assert message in error_of(run("pairs", "add", *arguments))
    error = error_of(run("pairs", "--json", "add", "own", "--target", target, "--draft", draft))
    assert "are about the list" in error
    assert not (config_folder() / "pairs").exists()


@pytest.mark.parametrize(
    ("template", "own", "step"),
    [
        ("plain", "", "train-draft --pair own --output my-draft"),
        ("plain", "bare_draft = true\n", "generate --pair own --compare"),
        ("a switch", "", "doctor --pair own --template enable_thinking=false"),
        (
            "a switch",
            "template = { enable_thinking = false }\n",
            "train-draft --pair own --output my-draft",
        ),
    ],
)
def test_doctors_next_step_is_one_that_can_be_done(
    run: Any, tmp_path: Path, template: str, own: str, step: str
) -> None:
    register(tmp_path, template, own)
    code, out, _ = run("doctor", "--pair", "own")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"Next: safedraft {step}")


def register(folder: Path, template: str, own: str) -> None:
    """Register a tiny pair with this template and these lines of its entry."""
    models = save_pair(folder / "pair")
    for model in models:
        save_tokenizer(model, template=TRAITS[template])
    pairs = config_folder() / "pairs"
    pairs.mkdir(parents=True)
    target, draft = models
    (pairs / "own.toml").write_text(f'[own]\ntarget = "{target}"\ndraft = "{draft}"\n{own}')


def test_doctor_and_generate_refuse_a_system_prompt_that_a_template_cannot_show(
    run: Any, tmp_path: Path
) -> None:
    register(tmp_path, "no system role", 'draft_system = "Be safe."\n')
    code, out, _ = run("doctor", "--pair", "own")
    assert code == 1
    assert "✗ system prompt" in out
    error = error_of(run("generate", "--pair", "own", "Hi"))
    assert "cannot have the system prompt that the pair gives it" in error


def test_doctor_warns_of_a_template_that_does_not_show_whether_replies_think(
    run: Any, tmp_path: Path
) -> None:
    register(tmp_path, "drops reasoning", "")
    code, out, _ = run("doctor", "--pair", "own")
    assert code == 0
    assert "! thinking" in out
    assert "does not show whether replies begin with it" in " ".join(out.split())


def recording_of(folder: Path, name: str, count: int) -> str:
    """A file with the first cases of a conformance file."""
    recording = json.loads((CONFORMANCE / f"{name}.json").read_text())
    for model in ("target", "draft"):
        recording[model] = str(CONFORMANCE / recording[model])
    recording["cases"] = recording["cases"][:count]
    file = folder / f"{name}.json"
    file.write_text(json.dumps(recording))
    return str(file)


@pytest.mark.parametrize(
    "name", ["near", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mid", "far"))]
)
def test_replay_finds_the_authors_tokens(run: Any, tmp_path: Path, name: str) -> None:
    code, out, _ = run("replay", recording_of(tmp_path, name, 2))
    assert out.splitlines()[-1] == "2/2 cases identical"
    assert len(out.splitlines()) == 3
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "drafting",
    [
        ["draft_tokens=1"],
        ["draft_tokens=8"],
        ["draft_tokens=8", "draft_tree=2-2-1-0-1"],
        ["draft_tokens=9", "draft_tree_threshold=0.01", "draft_tree_stop=0.1"],
    ],
)
@pytest.mark.parametrize("name", ["near", "mid", "far"])
def test_replay_finds_all_of_the_authors_tokens(run: Any, name: str, drafting: list[str]) -> None:
    file = str(CONFORMANCE / f"{name}.json")
    code, out, _ = run("replay", file, *(word for one in drafting for word in ("--set", one)))
    assert out.splitlines()[-1] == "12/12 cases identical"
    assert len(out.splitlines()) == 13
    assert code == 0


@pytest.mark.parametrize("setting", ["draft_tokens=0", "alpha_union=2.0"])
def test_replay_changes_nothing_but_how_tokens_are_drafted(run: Any, setting: str) -> None:
    code, _, err = run("replay", str(CONFORMANCE / "near.json"), "--set", setting)
    assert code == 2
    assert setting.partition("=")[0] in err


@pytest.mark.slow
def test_replay_sees_what_differs(run: Any, tmp_path: Path) -> None:
    recording = json.loads((CONFORMANCE / "mid.json").read_text())
    wrong_token, wrong_scheme, wrong_strength = recording["cases"][:3]
    wrong_token["steps"][5][2] += 1
    wrong_scheme["steps"][2][0] = "union"
    wrong_strength["steps"][0][1] = 0.31
    recording["cases"] = recording["cases"][:4]
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(recording))
    folders = [str(CONFORMANCE / recording[name]) for name in ("target", "draft")]
    code, out, _ = run("replay", str(file), "--target", folders[0], "--draft", folders[1])
    lines = out.splitlines()
    assert code == 1
    assert lines[-1] == "1/4 cases identical"
    assert lines[0].startswith("case 1: differs at 5: ")
    assert lines[2].startswith("case 3: differs at 0: ")


@pytest.mark.slow
def test_bench_times_every_method(run: Any, models: list[str]) -> None:
    options = ["--prompts", "2", "--max-new-tokens", "12", "--draft-tokens", "3"]
    options += ["--draft-tokens", "2", "--assisted-tokens", "2", "--tree", "2-1"]
    options += ["--tree", "draft_tree_threshold=0.1,draft_confidence=0,draft_tokens=3"]
    code, out, _ = run("bench", "--json", *options, *models, *TRANSFORMERS)
    outcome = json.loads(out)
    methods = outcome["methods"]
    assert code == 0
    names = ["target", "assisted", "assisted-2", "ensemble", "ssd", "ssd-2"]
    assert list(methods) == [*names, "ssd, tree 2-1", "ssd, grown tree 1"]
    assert methods["target"]["ratio"] == 1
    assert methods["target"]["tokens_per_target_pass"] == 1
    assert methods["target"]["match_ratio"] is None
    for figures in methods.values():
        shares = [figures[f"{name}_share"] for name in ("target", "draft", "rest")]
        assert sum(shares) == pytest.approx(1)
        assert all(share >= 0 for share in shares)
        assert set(figures["kinds"]) == {"prose", "code"}
    assert [kind["ratio"] for kind in methods["ssd"]["kinds"].values()] == [1, 1]
    assert 0 <= methods["ssd"]["match_ratio"] <= 1
    assert outcome["peak_memory_bytes"] > outcome["weights_bytes"] > 0
    code, out, _ = run("bench", *options, *models, *TRANSFORMERS)
    assert "rows/s" in out
    assert "left out" not in out
    (row,) = [line for line in out.splitlines() if line.startswith("ssd, tree 2-1 ")][1:]
    assert len(row.removeprefix("ssd, tree 2-1").split()) == 6  # two kinds: speed, ratio, matches


@pytest.mark.slow
def test_bench_compares_a_pair_that_drafts_trees_with_its_chain(
    run: Any, models: list[str]
) -> None:
    options = ["--prompts", "1", "--max-new-tokens", "4", "--set", "draft_tree=2-1"]
    options += ["--set", "draft_tokens=3", "--set", "draft_confidence=0"]
    code, out, _ = run("bench", "--json", *options, *models, *TRANSFORMERS)
    assert code == 0
    outcome = json.loads(out)
    assert [name for name in outcome["methods"] if name.startswith("ssd")] == ["ssd", "ssd, chain"]
    assert outcome["chain"] == "ssd, chain"
    assert outcome["methods"]["ssd, chain"]["kinds"]["prose"]["ratio"] == 1


def test_bench_leaves_out_what_transformers_has_not_for_a_pair(run: Any, tmp_path: Path) -> None:
    for name, vocabulary in (("target", 272), ("draft", 264)):
        save_model(tmp_path / name, vocabulary=vocabulary, eos_token_id=None)
        save_tokenizer(tmp_path / name)
    options = ["--prompts", "1", "--max-new-tokens", "4", "--draft-tokens", "2"]
    models = ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft")]
    code, out, _ = run("bench", *options, *models, *TRANSFORMERS)
    assert code == 0
    assert "left out: assisted: Transformers needs" in out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["target", "ssd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "", "--pair", "qwen2.5-coder"], "prompt is empty"),
        (["generate", "hi", "--pair", "qwen"], "no pair is called 'qwen'"),
        (["generate", "hi", "--target", "/no/such", "--draft", "/no/such"], "neither a folder"),
        (["generate", "hi", "--max-new-tokens", "0"], "max_new_tokens: must be "),
        (["generate", "hi", "--json-schema", "/no/such.json"], "--json-schema /no/such.json: "),
        (["generate", "hi", "--json-schema", __file__], "json_schema: is not JSON"),
        (["generate", "hi", "--max-new-tokens", "-5"], "max_new_tokens"),
        (["generate", "hi", "--temperature", "nan"], "temperature"),
        (["generate", "hi", "--min-p", "2"], "min_p: must be "),
        (["generate", "hi", "--presence-penalty", "3"], "presence_penalty: must be "),
        (["generate", "hi", "--frequency-penalty", "3"], "frequency_penalty: must be "),
        (["generate", "hi", "--repetition-penalty", "0"], "repetition_penalty: must be "),
        (["generate", "hi", "--set", "draft_tokens=0"], "draft_tokens"),
        (["generate", "hi", "--set", "bin_size=0"], "bin_size"),
        (["generate", "hi", "--set", "alpha_union=inf"], "alpha_union"),
        (["generate", "hi", "--set", "alpha_union=much"], "alpha_union"),
        (["generate", "hi", "--set", "beams=3"], "write NAME=VALUE with one of draft_tokens"),
        (["generate", "hi", "--trace", "/no/such/folder/t.json"], "No such file"),
        (["generate", "hi", "--adapter", "a/b", "--no-adapter"], "not both"),
        (["replay", "/no/such.json"], "No such file"),
        (["pull", "--target", "nobody/nothing"], "HF_HUB_OFFLINE is set"),
        (["replay", str(CONFORMANCE / "near.json"), "gone"], "no pair is called 'gone'"),
        (["pull", "--pair", "gone"], "'gone'"),
        (["calibrate", "--pair", "gone"], "'gone'"),
    ],
)
def test_bad_input_is_one_clear_line(run: Any, arguments: list[str], message: str) -> None:
    assert message in error_of(run(*arguments))


@pytest.mark.parametrize(
    "command",
    [
        ["pull"],
        ["generate", "hi"],
        ["pairs", "add", "new"],
        ["chat"],
        ["serve"],
        ["bench"],
        ["eval"],
        ["calibrate"],
        ["train-draft", "--output", "out"],
        ["train-risk"],
        ["train-ada-probe", "--output", "out"],
        ["replay", str(CONFORMANCE / "near.json")],
    ],
    ids=" ".join,
)
def test_a_pair_is_the_argument_or_an_option(run: Any, command: list[str]) -> None:
    for named in (["gone"], ["--pair", "gone"], ["gone", "--pair", "gone"]):
        assert "no pair is called 'gone'" in error_of(run(*command, *named))
    message = "one and --pair other: name one pair"
    assert message in error_of(run(*command, "one", "--pair", "other"))


def test_doctor_takes_a_pair_or_two_models(run: Any) -> None:
    error = error_of(run("doctor", "qwen2.5-coder", "--pair", "other"))
    assert "qwen2.5-coder and --pair other: name one pair" in error
    assert "'qwen2.5-coder' is neither a folder nor" in error_of(
        run("doctor", "qwen2.5-coder", "two")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ('{"target": "a", "draft": "b"}', "cases: is missing"),
        ('{"target": "a", "draft": "b", "cases": []}', "cases: must "),
        ('{"target": "a", "draft": "b", "cases": [{}]}', "cases.0.target_prompt"),
    ],
)
def test_a_broken_recording_names_file_and_field(
    run: Any, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(content)
    said = error_of(run("replay", str(file)))
    assert message in said
    assert str(file) in said


def test_an_incompatible_pair_is_refused(
    run: Any, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    save_model(tmp_path, vocabulary=300, eos_token_id=299)
    said = error_of(run("generate", "hi", "--target", str(tmp_path), "--draft", str(tiny_pair[1])))
    assert "cannot decode together" in said


def test_a_file_that_cannot_be_used_is_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("SAFEDRAFT_CACHE", str(tmp_path / "cache"))
    message = error_of(run("pull"))
    assert f"{tmp_path}/cache/" in message
    assert "Not a directory" in message


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "qwen2.5-coder"),
        (["--no-adapter"], "qwen2.5-coder"),
        (["--pair", "qwen2.5-coder"], "qwen2.5-coder"),
        (["qwen2.5-coder", "--pair", "qwen2.5-coder"], "qwen2.5-coder"),
        (["--target", "larger"], "larger + qwen2.5-coder-0.5b-instruct"),
    ],
)
def test_clients_know_a_pair_by_its_name_unless_a_model_is_another(
    run: Any, monkeypatch: pytest.MonkeyPatch, options: list[str], name: str
) -> None:
    names: list[str] = []
    monkeypatch.setattr(
        sys.modules["safedraft.cli.serve"],
        "_serve",
        lambda models, settings, *rest: names.append(settings.name),
    )
    assert run("serve", *options)[0] == 0
    assert names == [name]


@pytest.mark.parametrize(
    "options",
    [[], ["--playground"], ["--allow", "telemetry"], ["--allow", "constants"]],
    ids=" ".join,
)
def test_the_playground_allows_what_it_shows(
    run: Any, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    from safedraft.server.settings import PLAYGROUND, ServerSettings

    given: list[ServerSettings] = []
    monkeypatch.setattr(
        sys.modules["safedraft.cli.serve"],
        "_serve",
        lambda models, settings, *rest: given.append(settings),
    )
    assert run("serve", *options)[0] == 0
    allowed = {name for name in PLAYGROUND if getattr(given[0], name)}
    assert (
        allowed
        == {
            "": set(),
            "--playground": PLAYGROUND.keys(),
            "--allow telemetry": {"allow_telemetry"},
            "--allow constants": {"requests_may_set_constants"},
        }[" ".join(options)]
    )
    assert not given[0].allow_completions


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--draft-tokens-up-to", "8:2"], "draft_tokens_up_to: it is an option of vLLM"),
        (["--engine-option", "speed=1"], "no option is called 'speed'; known are dtype"),
        (["--engine", "cpu", "--device", "cpu"], "the engine cpu: no option is called 'device'"),
        (["--engine", "vllm", "--device", "cuda"], "device: vLLM runs on the platform"),
        (["--engine", "vllm", "--draft-dtype", "int8"], "draft_dtype: vLLM gives both models one"),
        (["--engine", "vllm", "--engine-option", "api_key=a"], "--api-key: set SAFEDRAFT_API_KEY"),
        (["--engine", "vllm", "--allow", "prefill"], "--allow prefill: any client may do this"),
        (["--engine", "vllm", "--max", "active=1"], "--max: vLLM's server has limits of its own"),
        (["--engine", "vllm", "--playground"], "--playground: vLLM's server does not have"),
    ],
)
def test_a_server_refuses_an_option_with_the_reason_of_its_engine(
    run: Any, arguments: list[str], reason: str
) -> None:
    shown = error_of(run("serve", "--port", "0", *arguments))
    assert reason in shown
    assert shown.count("\n") == 1


def test_vllms_server_takes_the_one_feature_that_it_has(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        sys.modules["safedraft.cli.serve"], "_serve_in_vllm", lambda *given: served.append(given)
    )
    for allowed, expected in (([], False), (["--allow", "constants"], True)):
        assert run("serve", "--engine", "vllm", *allowed)[0] == 0
        assert served.pop()[3] is expected
    assert run("serve", "--engine", "vllm", "--engine-option", "max_num_seqs=4")[0] == 0
    assert {"max_num_seqs": 4} in served.pop()


def test_a_report_without_logs_says_what_to_run_first(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "run `safedraft eval` first" in error_of(run("report"))


def test_a_full_disk_is_said(run: Any, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/file")

    monkeypatch.setattr("safedraft.models.parts.fetch", full)
    assert "the disk is full (/cache/file)" in error_of(run("generate", "hi", *models))


def test_broken_logits_are_an_error(
    run: Any, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safedraft.engines.transformers.session import TransformersSession

    forward = TransformersSession.forward
    monkeypatch.setattr(
        TransformersSession,
        "forward",
        lambda self, *passed: forward(self, *passed) * torch_nan(),
    )
    code, out, err = run("generate", "hi", *models, *TRANSFORMERS)
    assert (code, out.strip()) == (2, "")
    assert "gave NaN or infinite logits" in err


def torch_nan() -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            ["generate"],
            ["PROMPT", "--prefill TEXT", "--trace PATH", "--top-k INTEGER", "--compare "],
        ),
        (["doctor"], ["[PAIR|TARGET] [DRAFT]", "--json "]),
        (["serve"], ["[PAIR]", "--allow FEATURE", "--host TEXT", "--playground "]),
        (["judge-check"], ["--logs PATH", "--wrong "]),
        (["pairs"], ["--constants "]),
        (["pairs", "add"], ["NAME", "--description TEXT"]),
        ([], ["--version "]),
    ],
)
def test_help_writes_values_as_they_are_typed(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: list[str], shown: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(*command, "--help")
    assert code == 0
    words = " ".join(out.split())
    assert not [value for value in shown if value not in words]
    assert not [
        kind for kind in ("<bool>", "<str>", "<path>", "list[", "{", "[target]") if kind in words
    ]


def list_commands() -> list[list[str]]:
    """The words of every command, the one without a command first."""
    groups = [(group.name, group.typer_instance) for group in cli.app.registered_groups]
    within = [[name, one.name] for name, group in groups for one in group.registered_commands]
    names = [one.name or one.callback.__name__ for one in cli.app.registered_commands]
    return [[], *([name] for name in names), *([name] for name, _ in groups), *within]


@pytest.mark.parametrize("command", list_commands(), ids=" ".join)
def test_help_cuts_no_word_at_80_columns(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    shown = []
    for width in ("80", "500"):
        monkeypatch.setenv("COLUMNS", width)
        code, out, _ = run(*command, "--help")
        assert code == 0
        shown.append({word for word in out.split() if not set(word) <= set("─╭╮╰╯│")})
    assert shown[0] == shown[1]
