"""Tokenizers trained in the tests on this repository's own text, and texts of many kinds to try them on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rbee.models.gguf_file import GgufFile
from rbee.models.vocabulary import Vocabulary, build_vocabulary

_SOURCES = Path(__file__).parents[2] / "services" / "rbee" / "core"

VARIED_TEXTS = (
    "Hello, world!",
    "Write a short story about a bee.",
    "The quick brown fox jumps over the lazy dog",
    "",
    " ",
    "  two leading and two trailing  ",
    "a\n\nb\n \n  c\n",
    "\t\tindented\twith\ttabs\t",
    "line\r\nends\r\nof\rall\n\rkinds",
    "                                                        wide",
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\" if x != 0 else ''\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2.5e-3; } // sum",
    "SELECT * FROM nodes WHERE name LIKE '%bee%' AND port >= 9200;",
    '<html><body class="a b">&nbsp;<br/></body></html>',
    '{"key": [1, 2.0, null, true], "nested": {"deep": "\\u00e9\\n"}}',
    "0 1 12 123 1234 12345 123456 1234567890 3.14159265358979 1,000,000 0x1F 1e-9",
    "12345678901234567890123456789012345678901234567890",
    "I'm sure it's what they've said; we'll see, he'd know, don't, you're, O'Neill's",
    "IT'S DON'T WE'LL I'M THEY'VE YOU'RE HE'D 'tis 'S 'T",
    "camelCase PascalCase SCREAMING_SNAKE_CASE kebab-case iPhone McDonald's",
    "https://example.org:8443/a/b%20c?q=1&r[]=x#frag user@example.com",
    "/usr/local/bin/rbee --model 'hf:ORG/REPO' 2>&1 | tee -a ~/log.txt",
    "!!! ??? ... --- === *** ### @@@ $$$ %%% ^^^ &&& ((( ))) [[[ ]]] {{{ }}} <<< >>> ~~~ ``` |||",
    "«guillemets» “quotes” ‘single’ – — … • † ‡ § ¶ © ® ™ € £ ¥ ¢ µ ½ ² ³ °",
    "Größe, Straße, naïve café, façade, Ångström, señor, São Paulo, Čeština, Łódź",
    "Привет, мир! Как дела? Съешь ещё этих мягких французских булок",
    "Καλημέρα κόσμε, τι κάνεις; Ὀδυσσεύς ᾠδή",
    "你好，世界！今天天气怎么样？我有１２３个苹果。",
    "こんにちは世界。カタカナとひらがな、漢字。ﾊﾝｶｸ",
    "안녕하세요 세계! 한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥ هذا نص عربي",
    "שלום עולם, מה שלומך? זה טקסט בעברית",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่างระหว่างคำ ๑๒๓",
    "नमस्ते दुनिया, आप कैसे हैं? यह हिन्दी है। १२३",
    "বাংলা ভাষা தமிழ் మొదటి ગુજરાતી ქართული հայերեն አማርኛ",
    "👋🌍 🐝🐝🐝 ❤️ 👍🏽 🇩🇪🇯🇵 1️⃣",
    "👨‍👩‍👧‍👦 👩🏿‍🚀 🏳️‍🌈 🧑🏻‍🤝‍🧑🏽",
    "e\u0301 n\u0303 a\u0308 Z\u0351\u036b\u0343 combining",
    "no\u00a0break thin\u2009space ideographic\u3000space zero\u200bwidth \u2028line\u2029para \ufeffbom",
    "bell\x07 escape\x1b[31m red\x1b[0m del\x7f unit\x1f next\x85line",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒎𝒂𝒕𝒉 𐍈 𓂀 𠜎𠜱 🀄",
    "ǅ ǈ ŉ ß ẞ İ ı ſ K Å ﬁ ﬀ Ⅷ ⅷ ʰ",
    "Mixed 中文 and English и русский with 한국어 and العربية in one line 123",
    "a" * 300,
    "ab " * 100,
    "\n" * 40 + " " * 41 + "\t" * 7,
    'The year 2026—or was it 1999?—\'twas (allegedly) "fine"; e.g., 50% of $3.50/kg @ 20°C…',
    "done.\n\nnext!\r\n(see below):\n- item;\n- item;\n{\n}\n};\n",
    "x=1;y=2;z=x+y#comment\n\n\n    \n\tx",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt. " * 4,
)


@cache
def repository_lines() -> list[str]:
    """Text to train on: this project's sources and one sample of each script above."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.glob("*.py"))]
    lines = [line for text in sources for line in text.splitlines() if line.strip()]
    return lines + [text for text in VARIED_TEXTS if text.strip() and not text.isascii()] * 3


@cache
def _trained_bpe() -> tuple[list[str], list[str]]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Tokens cross the borders of words and run through the sample texts, so that every cut a pre-tokenizer
    # makes shows in the ids.
    runs = pre_tokenizers.Split(Regex("(?m:.{1,24})"), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([runs, bytes_only])
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"],
        show_progress=False,
    )
    samples = [text for text in VARIED_TEXTS if len(set(text)) > 3] * 20
    tokenizer.train_from_iterator(repository_lines() + samples, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [" ".join(m) for m in model["merges"]]


def bpe_metadata(pre: str | None = "gpt-2", **more: Any) -> dict[str, Any]:
    """The ``tokenizer.*`` keys of a GGUF with a small BPE; ``more`` adds keys below ``tokenizer.ggml.``.

    "Ġunreachable" is a token that no merges lead to, which shows whether merges are passed over.
    """
    tokens, merges = _trained_bpe()
    tokens = [*tokens, "Ġunreachable"]
    keys = {
        "model": "gpt2",
        "tokens": tokens,
        "token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **({} if pre is None else {"pre": pre}),
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@cache
def trained_sentencepiece(model_type: str) -> bytes:
    """A SentencePiece model with byte fallback and spaces kept as they are."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(repository_lines()),
        model_writer=model,
        vocab_size=1500,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        user_defined_symbols=["<tool>"],
        minloglevel=2,
        num_threads=2,
    )
    return model.getvalue()


def sentencepiece_metadata(model_type: str = "bpe", **more: Any) -> dict[str, Any]:
    """The ``tokenizer.*`` keys of a GGUF with the trained SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=trained_sentencepiece(model_type))
    ids = range(model.vocab_size())
    keys = {
        "model": "llama",
        "tokens": [model.id_to_piece(i) for i in ids],
        "scores": [model.get_score(i) for i in ids],
        "token_type": [_sentencepiece_type(model, i) for i in ids],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _sentencepiece_type(model: Any, token_id: int) -> int:
    if model.is_unknown(token_id):
        return 2
    if model.is_control(token_id):
        return 3
    if model.is_byte(token_id):
        return 6
    return 4 if model.id_to_piece(token_id) == "<tool>" else 1


def vocabulary_of(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF that has nothing but this metadata."""
    return build_vocabulary(GgufFile(Path("model.gguf"), 0, dict(metadata), {}))


def write_text_files(folder: Path, vocabulary: Vocabulary, **settings: Any) -> Path:
    """The part of a converted folder that has to do with text."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.write(folder)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary.tokens))
    recorded = {
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "stop_token_ids": list(vocabulary.stop_token_ids),
        "add_bos": vocabulary.add_bos,
        "add_space_prefix": vocabulary.add_space_prefix,
        "tokenizer": vocabulary.kind,
        "context_length": 512,
        "block_count": 1,
        **settings,
    }
    (folder / "rbee.json").write_text(json.dumps(recorded))
    return folder
