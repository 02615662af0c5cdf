"""A tokenizer of bytes, for tests: token id = byte, and one id more that ends a text."""

from __future__ import annotations

import codecs

END = 256


class ByteDecoder:
    """Implements ``rbee.worker.ports.Decoder``."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_pending(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def feed(self, token_id: int) -> str:
        return self._utf8.decode(bytes([token_id]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class ByteTextModel:
    """Implements ``rbee.worker.ports.TextModel``; a byte more than ``context_length`` does not fit."""

    def __init__(self, context_length: int = 4096) -> None:
        self.context_length = context_length
        self.tokens = [f"<{value}>" for value in range(257)]
        self.stop_token_ids = frozenset({END})

    def encode_prompt(self, prompt: str, system: str | None = None, raw: bool = False) -> list[int]:
        text = prompt if system is None or raw else f"{system}\n\n{prompt}"
        return list(text.encode())

    def decoder(self) -> ByteDecoder:
        return ByteDecoder()
