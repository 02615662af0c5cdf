r"""The pre-tokenizers a GGUF can name in ``tokenizer.ggml.pre``: how text is cut before byte-pair merging.

The names and their behaviour are those of llama.cpp (src/llama-vocab.cpp), which gives the names out; only
names whose token ids are compared with it are listed (tests/integration/test_reference_tokens.py). Where
llama.cpp simplifies the expression of the original tokenizer (``tekken``, ``gpt-4o``), it is followed: the
reference decides. Expressions are in Oniguruma's syntax, which the ``tokenizers`` library uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from rbee.core.errors import ModelIncompatible

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
# Spelt out, because a case-insensitive group also folds characters such as U+017F to "s".
_ANY_CASE_CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
# Letters of a run that may be upper case, or lower case; letters outside ASCII count as both.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
# Spaces outside ASCII, which lie in the first range, are no part of it in the reference.
_HAN_HANGUL = r"[[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&[^\s]]+"

_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+|{_SYMBOLS}|{_SPACES}"
_LLAMA3 = rf"{_ANY_CASE_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}[\r\n]*|{_LINES}"
_QWEN2 = rf"{_ANY_CASE_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}|{_SYMBOLS}[\r\n]*|{_LINES}"
_MINICPM5 = rf"{_ANY_CASE_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}+|{_SYMBOLS}[\r\n]*|{_LINES}"
_SEED_CODER = rf"{_ANY_CASE_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SYMBOLS}[\r\n/]*|{_LINES}"
_GPT_4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+(?:{_ANY_CASE_CONTRACTIONS})?"
    rf"|{_LEAD}{_UPPER}+{_LOWER}*(?:{_ANY_CASE_CONTRACTIONS})?"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}[\r\n/]*|{_LINES}"
)
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+"

# The cased letters of the tokenizer of DeepSeek LLM, as hexadecimal ranges; a Unicode category would take in
# letters that were added to the standard later.
_CASED_LETTERS = """
0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373 0376 0377
037B-037D 037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556 10A0-10C5 13A0-13F5
13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D
1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB
1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F
A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB
10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""


def _character_class(ranges: str) -> str:
    ends = (piece.split("-") for piece in ranges.split())
    return "".join("-".join(rf"\x{{{end}}}" for end in pair) for pair in ends)


@dataclass(frozen=True)
class PreTokenizer:
    """``patterns`` cut one after the other, each within the pieces the one before has left; what a pattern
    does not match is a piece too. ``ignore_merges``: a piece that is a token as a whole is not built from
    merges. ``add_bos`` is the default of a file without ``tokenizer.ggml.add_bos_token``.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_BEHAVIOURS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    "qwen2": PreTokenizer((_QWEN2,)),
    "seed-coder": PreTokenizer((_SEED_CODER,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer((_GPT_4O,)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_character_class(_CASED_LETTERS)}]+",
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+",
            r"\s+\z",
            _HAN_HANGUL,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}")),
    "bloom": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
}

_ALIASES: dict[str, str] = {
    "gpt-2": "phi-2 mpt olmo jais exaone4 trillion mellum gigachat a.x-4.0 granite-docling",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe",
    "qwen2": "deepseek-r1-qwen megrez stablelm2 hunyuan solar-open kormo grok-2",
    "gpt-4o": "llama4 kanana2 minimax-m2",
    "bloom": "poro-chat gpt3-finnish",
}

_NAMED: dict[str, PreTokenizer] = _BEHAVIOURS | {
    alias: _BEHAVIOURS[name] for name, aliases in _ALIASES.items() for alias in aliases.split()
}

PRE_TOKENIZER_BEHAVIOURS: tuple[str, ...] = tuple(_BEHAVIOURS)
SUPPORTED_PRE_TOKENIZERS: tuple[str, ...] = tuple(sorted(_NAMED))


def pre_tokenizer_named(name: str) -> PreTokenizer:
    """Raises ModelIncompatible with the name and the list of the known ones."""
    found = _NAMED.get(name)
    if found is None:
        raise ModelIncompatible(
            f"Pre-tokenizer '{name[:100]}' is not supported",
            details={
                "format": "tokenizer.ggml.pre",
                "found": name[:100],
                "supported": list(SUPPORTED_PRE_TOKENIZERS),
            },
            suggestion=f"Use a model with one of: {', '.join(SUPPORTED_PRE_TOKENIZERS)}",
        )
    return found
