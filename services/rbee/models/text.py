"""Text to token ids and back for a model folder: what a worker needs besides the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rbee.core.errors import InvalidRequest
from rbee.models.chat_template import ChatTemplate
from rbee.models.folder_settings import FolderSettings, read_folder_settings
from rbee.models.special_tokens import SpecialTokenSplitter, rearm
from rbee.models.stream_decoding import StreamDecoder, with_first_space
from rbee.models.tokenizer_files import TokenizerFile, open_tokenizer, unusable


@dataclass(frozen=True)
class TextModel:
    """``tokens`` are the engine's strings, index = id. One object serves all requests of a worker."""

    settings: FolderSettings
    tokenizer: TokenizerFile
    splitter: SpecialTokenSplitter
    template: ChatTemplate | None

    @property
    def tokens(self) -> list[str]:
        return self.settings.tokens

    @property
    def vocab_size(self) -> int:
        return len(self.settings.tokens)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        return self.settings.stop_token_ids

    @property
    def context_length(self) -> int:
        return self.settings.context_length

    @property
    def block_count(self) -> int | None:
        return self.settings.block_count

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    def encode_prompt(self, prompt: str, system: str | None = None, raw: bool = False) -> list[int]:
        """The ids the engine continues.

        With a chat template, control tokens come from the template only: where the prompt or the system text
        contains the text of one, it stays text. ``raw`` takes the prompt as it is, control tokens included. A
        model without a template gets ``system``, an empty line and ``prompt`` as plain text.
        Raises InvalidRequest for text that is no valid Unicode and ModelIncompatible when the template fails.
        """
        _require_unicode(prompt=prompt, system=system or "")
        if raw:
            ids = self.encode(prompt, honour_control=True)
        elif self.template is not None:
            ids = self._encode_conversation(self.template, prompt, system)
        else:
            plain = prompt if system is None else f"{system}\n\n{prompt}"
            ids = self.encode(plain, honour_control=False)
        bos = self.settings.bos_token_id
        if bos is not None and self.settings.add_bos and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def decoder(self, *, continues_text: bool = False) -> StreamDecoder:
        """A decoder for one answer. ``continues_text`` keeps the space at its start, for a text that is to be
        joined to the prompt."""
        drop = self.tokenizer.drops_leading_space and not continues_text
        return StreamDecoder(self.tokenizer.bytes_of, drop_leading_space=drop)

    def _encode_conversation(self, template: ChatTemplate, prompt: str, system: str | None) -> list[int]:
        known = template.source + prompt + (system or "")
        prompt, meanings = self.splitter.disarm(prompt, avoiding=known)
        if system is not None:
            system, more = self.splitter.disarm(system, avoiding=known + "".join(meanings))
            meanings |= more
        return self.encode(template.render(prompt, system), honour_control=True, meanings=meanings)

    def encode(self, text: str, *, honour_control: bool, meanings: dict[str, str] | None = None) -> list[int]:
        """The ids of a text alone; ``meanings`` are those of a text that was disarmed."""
        ids: list[int] = []
        for index, fragment in enumerate(self.splitter.split(text, honour_control=honour_control)):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                text_of_fragment = rearm(fragment, meanings or {})
                if index == 0 and self.tokenizer.wants_first_space:
                    text_of_fragment = with_first_space(text_of_fragment)
                ids += self.tokenizer.encode(text_of_fragment)
        return ids


def load_text_model(folder: Path) -> TextModel:
    """Opens a converted folder of ours, or any CTranslate2 folder with a tokenizer.

    Raises ModelIncompatible when the folder has no tokenizer that can be used.
    """
    settings = read_folder_settings(folder)
    tokenizer = open_tokenizer(folder, settings.tokenizer_config)
    if tokenizer.size > len(settings.tokens):
        raise unusable(f"its tokenizer has {tokenizer.size} tokens and its vocabulary {len(settings.tokens)}")
    template = None
    if settings.chat_template is not None:
        template = ChatTemplate(settings.chat_template, settings.special_texts)
    settings = settings.completed(tokenizer.special_tokens, tokenizer.adds_bos)
    return TextModel(settings, tokenizer, SpecialTokenSplitter(tokenizer.special_tokens), template)


def _require_unicode(**texts: str) -> None:
    errors = []
    for field, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            message = "must be valid Unicode text"
            errors.append({"field": field, "constraint": "utf-8", "message": message})
    if errors:
        raise InvalidRequest(errors)
