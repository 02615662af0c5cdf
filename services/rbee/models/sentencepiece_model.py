"""A SentencePiece model file from the token list of a GGUF.

The format is sentencepiece_model.proto of the SentencePiece project; it is written field by field, because
the message classes that come with the library need the protobuf package, which nothing else here needs.
"""

from __future__ import annotations

import struct

from rbee.models.token_table import TokenTable, TokenType, refused

# Field numbers of ModelProto, ModelProto.SentencePiece, TrainerSpec and NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _VOCABULARY_SIZE, _BYTE_FALLBACK = 3, 4, 35
_UNKNOWN_ID, _BOS_ID, _EOS_ID, _PAD_ID = 40, 41, 42, 43
_UNKNOWN_PIECE, _BOS_PIECE, _EOS_PIECE = 45, 46, 47
_NAME, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_SPACES, _ESCAPE_SPACES = 1, 3, 4, 5

# GGUF's "llama" tokenizers merge the neighbours with the highest score first, which is this type's algorithm,
# whatever type the model was trained as.
_BPE = 2
_NONE = -1


def sentencepiece_model(
    table: TokenTable,
    *,
    unknown_id: int | None,
    bos_id: int | None,
    eos_id: int | None,
    add_space_prefix: bool,
) -> bytes:
    """The bytes of a ``tokenizer.model``; text is not normalised and spaces are kept as they are.

    Raises ModelIncompatible when the library does not accept the outcome.
    """
    types = list(table.types)
    unknown = _unknown_token(table, unknown_id)
    for token_id in table.ids_of_type(TokenType.UNKNOWN):
        types[token_id] = TokenType.CONTROL
    types[unknown] = TokenType.UNKNOWN
    byte_fallback = _has_all_bytes(table)
    if not byte_fallback:
        types = [TokenType.UNUSED if kind is TokenType.BYTE else kind for kind in types]
    types = [TokenType.NORMAL if kind is TokenType.UNDEFINED else kind for kind in types]

    pieces = b"".join(
        _message(
            _PIECES,
            _text(_PIECE_TEXT, name) + _float(_PIECE_SCORE, score) + _integer(_PIECE_TYPE, kind),
        )
        for name, score, kind in zip(table.names, table.scores, types, strict=True)
    )
    trainer = (
        _integer(_MODEL_TYPE, _BPE)
        + _integer(_VOCABULARY_SIZE, len(table))
        + _integer(_BYTE_FALLBACK, byte_fallback)
        + _integer(_UNKNOWN_ID, unknown)
        + _integer(_BOS_ID, _NONE if bos_id is None else bos_id)
        + _integer(_EOS_ID, _NONE if eos_id is None else eos_id)
        + _integer(_PAD_ID, _NONE)
        + _text(_UNKNOWN_PIECE, table.names[unknown])
        + (b"" if bos_id is None else _text(_BOS_PIECE, table.names[bos_id]))
        + (b"" if eos_id is None else _text(_EOS_PIECE, table.names[eos_id]))
    )
    normalizer = (
        _text(_NAME, "identity")
        + _integer(_ADD_DUMMY_PREFIX, add_space_prefix)
        + _integer(_REMOVE_EXTRA_SPACES, False)
        + _integer(_ESCAPE_SPACES, True)
    )
    proto = pieces + _message(_TRAINER, trainer) + _message(_NORMALIZER, normalizer)
    _check(proto)
    return proto


def _unknown_token(table: TokenTable, given: int | None) -> int:
    """The format wants exactly one unknown token; a file without one lends a token no text is made of."""
    marked = table.ids_of_type(TokenType.UNKNOWN)
    if marked:
        return given if given in marked else marked[0]
    if given is not None:
        return given
    spare = table.ids_of_type(TokenType.CONTROL) or table.ids_of_type(TokenType.UNUSED)
    return spare[0] if spare else 0


def _has_all_bytes(table: TokenTable) -> bool:
    found = {table.names[token_id] for token_id in table.ids_of_type(TokenType.BYTE)}
    return found == {f"<0x{value:02X}>" for value in range(256)}


def _check(proto: bytes) -> None:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, OSError) as error:
        raise refused(f"SentencePiece does not accept it ({str(error)[:200]})", "ggml.tokens") from None


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())
