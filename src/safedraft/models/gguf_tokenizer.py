"""The tokenizer in a GGUF file, as Transformers has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safedraft.models.gguf import GgufHeader
from safedraft.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
    "<end_of_turn>",
)  # fmt: skip
"""Control tokens that end a reply if the vocabulary has them; a file may name only one."""

_NAMED_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Keys of a file that name an end of a reply."""

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}
"""Names of tokens in the tokenizer, and in the file."""

_SPACE = "▁"
"""The character with which SentencePiece writes a space."""

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
"""Types of tokens: the first two are matched whole in a text, the third is not in the model."""

_WHOLE_WORDS = ("llama-bpe", "tekken")
"""Ways to split text before its bytes are merged, by their names in files, under which a word that
is a token is never merged from parts."""

_COMPOSED = ("qwen2",)
"""Ways to split under which characters are composed first (Unicode's NFC)."""

_DIGITS = ("refact", "smollm", "starcoder")
"""Ways to split that follow GPT-2, and separate every digit."""

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = (r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")

_LLAMA3 = "|".join((_ENDINGS, _LETTERS, r"\p{N}{1,3}", _MARKS, *_SPACES))
_QWEN2 = "|".join((_ENDINGS, _LETTERS, r"\p{N}", _MARKS, *_SPACES))
_TEKKEN = "|".join((*_CASED, r"\p{N}", _PATHS, *_SPACES))
_GPT4O = "|".join((*(f"{words}{_ENDINGS}?" for words in _CASED), r"\p{N}{1,3}", _PATHS, *_SPACES))

WORDS = {
    "dbrx": _LLAMA3,
    "deepseek-r1-qwen": _QWEN2,
    "gpt-4o": _GPT4O,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "tekken": _TEKKEN,
}
"""Expressions of the pieces into which a text is split."""

_SPLITS = (*WORDS, *_DIGITS, "gpt-2")
"""All ways to split text that are read."""


def read_tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a file, with its chat template.

    Raises:
        SafeDraftError: the file has no tokenizer, or one of an unsupported kind.
    """
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise header.refusal("it holds no tokenizer: convert the model again with its tokenizer")
    kind = header.metadata.get("tokenizer.ggml.model")
    split = header.metadata.get("tokenizer.ggml.pre")
    with quiet_transformers():
        if kind == "gpt2" and split in _SPLITS:
            tokenizer = _byte_level(header, split)
        elif kind == "llama" and header.architecture != "phi3":
            tokenizer = _sentencepiece(header)
        else:
            raise header.refusal(
                f"its tokenizer ({kind}, {split}) is not read from files of {header.architecture}: "
                "name the model's folder of safetensors"
            )
    tokenizer.name_or_path = str(header.path)
    unused = {*_tokens_of_kind(header, _UNUSED)}
    read = {(id, token) for token, id in tokenizer.get_vocab().items()}
    if differing := sorted(({*enumerate(tokens)} ^ read) - unused):
        id, token = differing[0]
        raise header.refusal(
            f"its token {token!r} ({id}) is not read as it stands: name the model's folder of "
            "safetensors"
        )
    return tokenizer


def read_generation(header: GgufHeader) -> GenerationConfig:
    """Return the settings of generation: the ids that end a reply, begin a text and pad it."""
    from transformers import GenerationConfig

    metadata = header.metadata
    control = {token: id for id, token in _tokens_of_kind(header, _CONTROL)}
    ends = [metadata.get(f"tokenizer.ggml.{key}") for key in _NAMED_ENDS]
    ends += [control.get(token) for token in _END_TOKENS]
    return GenerationConfig(
        eos_token_id=[id for id in dict.fromkeys(ends) if id is not None],
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def _byte_level(header: GgufHeader, split: str) -> PreTrainedTokenizerBase:
    """Build a tokenizer that merges bytes.

    Transformers' own reader adds tokens that the model does not have, cuts those that are not
    written in its alphabet, and knows neither ``_WHOLE_WORDS`` nor ``_COMPOSED`` nor ``_DIGITS``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    unused = {*_tokens_of_kind(header, _UNUSED)}
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    backend = Tokenizer(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens) if (id, token) not in unused},
            merges=merges,
            ignore_merges=split in _WHOLE_WORDS,
        )
    )
    if split in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitter(split)
    backend.decoder = decoders.ByteLevel()
    for kind in (_CONTROL, _USER_DEFINED):
        backend.add_tokens(
            [
                AddedToken(token, normalized=False, special=kind == _CONTROL)
                for _, token in _tokens_of_kind(header, kind)
            ]
        )
    named = {
        name: tokens[metadata[f"tokenizer.ggml.{key}"]]
        for name, key in _SPECIAL.items()
        if f"tokenizer.ggml.{key}" in metadata
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        add_bos_token=metadata.get("tokenizer.ggml.add_bos_token", False),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _splitter(split: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split in WORDS:
        words = pre_tokenizers.Split(Regex(WORDS[split]), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([words, rest])
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split not in _DIGITS:
        return as_gpt2
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), as_gpt2])


def _sentencepiece(header: GgufHeader) -> PreTrainedTokenizerBase:
    """Build a SentencePiece tokenizer by Transformers' reader, with the right space before words.

    Transformers puts one before the first word of a text, as Mistral's later tokenizers do, which
    have a control token for instructions. Older ones put one after each control token as well, and
    a file may say that there is none.
    """
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Not by from_pretrained, which would prefer a tokenizer.json that lies beside the file.
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        name_or_path=str(header.path.parent), gguf_file=header.path.name
    )
    if header.architecture.startswith("gemma"):
        return tokenizer
    backend: Any = tokenizer.backend_tokenizer
    if not header.metadata.get("tokenizer.ggml.add_space_prefix", True):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    elif "[INST]" not in (token for _, token in _tokens_of_kind(header, _CONTROL)):
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        )
    return tokenizer


def _tokens_of_kind(header: GgufHeader, kind: int) -> list[tuple[int, str]]:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    kinds = header.metadata.get("tokenizer.ggml.token_type", [])
    return [(id, tokens[id]) for id, own in enumerate(kinds) if own == kind]
