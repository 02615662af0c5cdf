"""Typed access to the metadata of a model's architecture; every refusal names the key and its value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import GgufFile


@dataclass(frozen=True)
class Metadata:
    """The keys below ``<architecture>.`` of one file, by their names without that prefix."""

    gguf: GgufFile

    def has(self, key: str) -> bool:
        return self.gguf.arch(key) is not None

    def names(self) -> list[str]:
        prefix = f"{self.gguf.architecture}."
        return [key.removeprefix(prefix) for key in self.gguf.metadata if key.startswith(prefix)]

    def refusal(self, key: str, reason: str) -> ModelIncompatible:
        """The error for a value that the engine cannot reproduce or that makes no sense."""
        name = f"{self.gguf.architecture}.{key}"
        value = self.gguf.arch(key)
        shown = value if isinstance(value, int | float | bool) or value is None else str(value)[:80]
        return ModelIncompatible(
            f"The model has {name} = {shown}: {reason}",
            details={"architecture": self.gguf.architecture, "key": name, "value": shown},
            suggestion="Use another file of the model, or another model",
        )

    def refusal_of_tensor(self, name: str, reason: str) -> ModelIncompatible:
        return ModelIncompatible(
            f"The model's tensor {name[:80]} cannot be used: {reason}",
            details={"architecture": self.gguf.architecture, "tensor": name[:80]},
            suggestion="Use another file of the model, or another model",
        )

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refusal(key, "a number is needed")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """A non-negative integer; a per-layer list of one repeated value counts as that value."""
        value = self._value(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise self.refusal(key, "one integer for all layers is needed")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "a text is needed")
        return value

    def _value(self, key: str, default: object) -> object:
        value = self.gguf.arch(key, default)
        if value is None:
            raise self.refusal(key, "the key is missing")
        return value
