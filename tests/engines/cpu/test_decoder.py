"""The compiled program against the same arithmetic in torch, in every family."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from helpers.quantized import FAMILIES, VOCABULARY, build, quantize
from helpers.trees import TREE, path_to

from safedraft.core.errors import SafeDraftError
from safedraft.core.session import Pass
from safedraft.engines.cpu.compiled import compile_program, why_not_available

if why_not_available():
    pytest.skip("the engine cpu does not run here", allow_module_level=True)
compile_program()

from safedraft.engines.cpu.architecture import why_not_supported  # noqa: E402
from safedraft.engines.cpu.decoder import CHUNK, Decoder  # noqa: E402
from safedraft.engines.cpu.pack import pack, read, save  # noqa: E402

IDS = torch.randint(VOCABULARY, (150,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def decoder():
    return make("qwen2")


def make(family, **settings):
    return Decoder(family, pack(family, build(family, **settings)), VOCABULARY)


def ask(decoder, session, tokens, keep=None):
    (logits,) = decoder.forward([Pass(session, tokens, keep or len(tokens))])
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_torch_with_the_same_rounding(family):
    decoder = make(family)
    ids = IDS[:25]
    expected = quantize(build(family))(torch.tensor([ids])).logits[0]
    found = ask(decoder, decoder.session(), ids)
    error = (found - expected).abs().amax(-1)
    # Where a number lies between two whole ones, a last bit can move a row by one of 127 steps,
    # and with it what comes after.
    assert error.median() < 1e-2
    assert error.max() < 0.3
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("family", ["qwen2", "olmo2"])
def test_rows_have_the_same_bits_however_they_are_cut(family):
    decoder = make(family)
    whole = ask(decoder, decoder.session(), IDS)
    session, pieces, start = decoder.session(), [], 0
    for count in (3, 1, 8, 2, 13, 16, 64, 43):
        pieces.append(ask(decoder, session, IDS[start : start + count]))
        start += count
    assert start == len(IDS) > CHUNK
    assert torch.equal(torch.cat(pieces), whole)


def test_rows_have_the_same_bits_beside_other_requests(decoder):
    alone = ask(decoder, decoder.session(), IDS[:20])
    one, other = decoder.session(), decoder.session()
    ask(decoder, other, IDS[:90])
    passes = [Pass(other, IDS[90:95], 2), Pass(one, IDS[:20], 20), Pass(decoder.session(), [7], 1)]
    assert torch.equal(decoder.forward(passes)[1], alone)


def test_rewinding(decoder):
    session = decoder.session()
    expected = ask(decoder, session, IDS[:40])
    session.rewind(10)
    ask(decoder, session, [5, 6, 7])
    session.rewind(3)
    assert torch.equal(ask(decoder, session, IDS[30:40]), expected[30:])


def test_a_long_text_up_to_the_limit():
    decoder = make("llama")
    ids = (IDS * 4)[:512]
    whole = ask(decoder, decoder.session(), ids)
    session = decoder.session()
    ask(decoder, session, ids[:500], 1)
    assert torch.equal(ask(decoder, session, ids[500:]), whole[500:])
    with pytest.raises(SafeDraftError, match="at most 512 tokens, and 513"):
        ask(decoder, session, [1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [1, 30, 120])
def test_nodes_of_a_tree_have_the_bits_of_their_own_texts(family, head):
    decoder = make(family)
    nodes = IDS[-len(TREE) :]
    whole, parts = decoder.session(), decoder.session()
    logits = [decoder.forward([Pass(whole, IDS[:head] + nodes, len(TREE), TREE)])[0]]
    ask(decoder, parts, IDS[:head])
    some = [Pass(parts, nodes[at : at + 3], 3, TREE[at : at + 3]) for at in (0, 3, 6)]
    logits.append(torch.cat([decoder.forward([one])[0] for one in some]))
    for node in range(len(TREE)):
        text = IDS[:head] + [nodes[at] for at in path_to(node)]
        expected = ask(decoder, decoder.session(), text, 1)[0]
        assert all(torch.equal(found[node], expected) for found in logits)
    for session, node in ((whole, 5), (parts, 6)):
        session.keep(path_to(node))
        text = IDS[:head] + [nodes[at] for at in path_to(node)]
        assert session.length == len(text)
        expected = ask(decoder, decoder.session(), [*text, 7], 1)
        assert torch.equal(ask(decoder, session, [7]), expected)


def test_the_last_hidden_states(decoder):
    session = decoder.session()
    ask(decoder, session, IDS[:30], 4)
    model = quantize(build("qwen2"))
    expected = model.model(torch.tensor([IDS[:30]])).last_hidden_state[0, -4:]
    assert session.hidden.shape == (4, 64)
    torch.testing.assert_close(session.hidden, expected, rtol=0, atol=0.2)


def test_a_token_that_the_model_does_not_have(decoder):
    with pytest.raises(SafeDraftError, match="token 301, and the model has 301"):
        ask(decoder, decoder.session(), [3, 301])


def test_weights_that_are_no_numbers_end_in_logits_that_are_none():
    model = build("qwen2")
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = float("nan")
    decoder = Decoder("broken", pack("broken", model), VOCABULARY)
    assert ask(decoder, decoder.session(), [3]).isnan().all()


def test_packed_weights_come_back_from_their_file(decoder, tmp_path):
    save(decoder.packed, tmp_path / "packed.pt")
    again = Decoder("again", read(tmp_path / "packed.pt"), VOCABULARY)
    expected = ask(decoder, decoder.session(), IDS[:9])
    assert torch.equal(ask(again, again.session(), IDS[:9]), expected)
    (tmp_path / "packed.pt").write_bytes(b"PK")
    with pytest.raises(SafeDraftError, match=r"packed\.pt is damaged: delete it"):
        read(tmp_path / "packed.pt")


def test_a_smaller_vocabulary(decoder):
    smaller = Decoder("smaller", decoder.packed, 290)
    expected = ask(decoder, decoder.session(), IDS[:3])[:, :290]
    assert torch.equal(ask(smaller, smaller.session(), IDS[:3]), expected)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("mistral", {"sliding_window": 9}, "no sliding windows, and this mistral has"),
        ("llama", {"hidden_act": "gelu"}, "silu and not gelu"),
        ("qwen2", {"quantization_config": {"quant_method": "awq"}}, "has quantized ones"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "no rotary positions of type dynamic",
        ),
    ],
)
def test_what_it_does_not_run(family, settings, reason):
    from transformers import AutoConfig

    assert reason in why_not_supported(AutoConfig.for_model(family, **settings))


def test_families_that_it_does_not_have():
    from transformers import GPT2Config

    assert "has no gpt2 models, only llama" in why_not_supported(GPT2Config())
