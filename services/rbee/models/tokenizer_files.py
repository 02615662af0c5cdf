"""The tokenizer file of a model folder, opened: fragments of text to ids, and ids to bytes.

Special tokens are not this module's business: they are cut out of the text before it comes here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rbee.core.errors import ModelIncompatible
from rbee.models.special_tokens import SpecialToken
from rbee.models.stream_decoding import SPACE_MARK, byte_level_bytes, byte_token_value, space_mark_bytes
from rbee.models.token_names import text_of_name

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer


class TokenizerFile(Protocol):
    """``size`` is one more than the largest id. ``adds_bos`` is None where the file does not say. Two flags
    tell of spaces: ``drops_leading_space`` that decoded text has one in front that was not in the text, and
    ``wants_first_space`` that the caller has to put one before a text's first fragment if it has none."""

    size: int
    special_tokens: tuple[SpecialToken, ...]
    drops_leading_space: bool
    wants_first_space: bool
    adds_bos: bool | None

    def encode(self, fragment: str) -> list[int]: ...

    def bytes_of(self, token_id: int) -> bytes: ...


def open_tokenizer(folder: Path, config: Mapping[str, Any]) -> TokenizerFile:
    """Opens ``tokenizer.json``, else ``tokenizer.model``; ``config`` is ``tokenizer_config.json`` or empty.

    Raises ModelIncompatible when there is neither, or one that cannot be used.
    """
    for name in ("tokenizer.json", "tokenizer.model"):
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unusable(f"{name} cannot be read ({error.strerror})") from None
        return TokenizersFile(content) if name == "tokenizer.json" else SentencePieceFile(content, config)
    raise unusable("it has no tokenizer.json or tokenizer.model")


def unusable(reason: str) -> ModelIncompatible:
    """The error for a model folder whose tokenizer or settings cannot be used."""
    return ModelIncompatible(
        f"The model folder cannot be used: {reason}",
        details={"format": "ctranslate2", "reason": reason},
        suggestion="Convert the model again",
    )


class TokenizersFile:
    """A ``tokenizer.json`` of the ``tokenizers`` library, of byte-level or SentencePiece style."""

    def __init__(self, content: bytes) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Tokenizer = Tokenizer.from_buffer(content)
        except ValueError as error:
            raise unusable(f"tokenizer.json is not accepted ({str(error)[:200]})") from None
        # The text of a control token that is still in a fragment is to be taken as text.
        self._tokenizer.encode_special_tokens = True
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.special_tokens = tuple(
            SpecialToken(
                token_id, text_of_name(token.content, token_id), token.special, token.lstrip, token.rstrip
            )
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
        )
        self._special = {token.token_id: token for token in self.special_tokens}
        self.size = max([self.size, *(token_id + 1 for token_id in self._special)])
        self._is_byte_level, self.drops_leading_space = _decoding(_state(self._tokenizer.decoder))
        self.wants_first_space = self._stop_first_prefix()
        with_additions = self._tokenizer.encode("", add_special_tokens=True).ids
        self.adds_bos = bool(with_additions) if self._tokenizer.post_processor is not None else None

    def encode(self, fragment: str) -> list[int]:
        return list(self._tokenizer.encode(fragment, add_special_tokens=False).ids)

    def bytes_of(self, token_id: int) -> bytes:
        special = self._special.get(token_id)
        if special is not None:
            return b"" if special.is_control else special.text.encode()
        name = self._tokenizer.id_to_token(token_id)
        if name is None:
            return b""
        if self._is_byte_level:
            return byte_level_bytes(text_of_name(name, token_id))
        value = byte_token_value(name)
        return space_mark_bytes(text_of_name(name, token_id)) if value is None else value

    def _stop_first_prefix(self) -> bool:
        """Takes the space before the very first fragment off a pre-tokenizer that puts it there, as it sees
        one fragment at a time and cannot know which is the first."""
        from tokenizers.pre_tokenizers import Metaspace

        state = _state(self._tokenizer.pre_tokenizer)
        if state.get("type") != "Metaspace" or state.get("prepend_scheme") != "first":
            return False
        self._tokenizer.pre_tokenizer = Metaspace(
            replacement=state["replacement"], prepend_scheme="never", split=state["split"]
        )
        return True


class SentencePieceFile:
    """A ``tokenizer.model`` of the SentencePiece library; ``tokenizer_config.json`` may add tokens to it."""

    adds_bos: bool | None = None
    wants_first_space = False

    def __init__(self, content: bytes, config: Mapping[str, Any]) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model: SentencePieceProcessor = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise unusable(f"tokenizer.model is not accepted ({str(error)[:200]})") from None
        self._pieces = self._model.vocab_size()
        self.special_tokens = _added_tokens(config) or self._control_pieces()
        self._special = {token.token_id: token for token in self.special_tokens}
        self.size = max([self._pieces, *(token_id + 1 for token_id in self._special)])
        self.drops_leading_space = self._model.normalize("a").startswith(SPACE_MARK)

    def encode(self, fragment: str) -> list[int]:
        return list(self._model.encode(fragment))

    def bytes_of(self, token_id: int) -> bytes:
        special = self._special.get(token_id)
        if special is not None:
            return b"" if special.is_control else space_mark_bytes(special.text)
        model = self._model
        if token_id >= self._pieces or model.is_control(token_id) or model.is_unknown(token_id):
            return b""
        name = model.id_to_piece(token_id)
        value = byte_token_value(name) if model.is_byte(token_id) else None
        return space_mark_bytes(text_of_name(name, token_id)) if value is None else value

    def _control_pieces(self) -> tuple[SpecialToken, ...]:
        model = self._model
        return tuple(
            SpecialToken(token_id, text_of_name(model.id_to_piece(token_id), token_id), is_control=True)
            for token_id in range(self._pieces)
            if model.is_control(token_id) or model.is_unknown(token_id)
        )


def _added_tokens(config: Mapping[str, Any]) -> tuple[SpecialToken, ...]:
    try:
        return tuple(
            SpecialToken(
                token_id=int(token_id),
                text=str(token["content"]),
                is_control=bool(token.get("special", True)),
                strips_left=bool(token.get("lstrip", False)),
                strips_right=bool(token.get("rstrip", False)),
            )
            for token_id, token in config.get("added_tokens_decoder", {}).items()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise unusable("tokenizer_config.json has malformed added tokens") from None


def _state(component: Any) -> dict[str, Any]:
    """What a part of a tokenizer is, as in tokenizer.json."""
    return {} if component is None else dict(json.loads(component.__getstate__()))


def _decoding(state: dict[str, Any]) -> tuple[bool, bool]:
    """Whether tokens are byte-level, and whether text loses a leading space."""
    steps = state["decoders"] if state.get("type") == "Sequence" else [state]
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return True, bool(steps[0].get("add_prefix_space"))
    if kinds == {"Metaspace"}:
        return False, steps[0].get("prepend_scheme", "always") != "never"
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in kinds:
        return False, "Strip" in kinds
    raise unusable(f"tokenizer.json decodes by {', '.join(sorted(map(str, kinds)))}, which is not supported")
