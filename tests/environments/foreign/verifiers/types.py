"""Types of the stand-in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class State(dict):
    """A dict that looks in its `input` too."""

    def __missing__(self, key: str) -> Any:
        return dict.__getitem__(self, "input")[key]


class ChatCompletion:
    """A response: `choices[0].message.content`."""

    @staticmethod
    def model_validate(value: Any) -> Any:
        if isinstance(value, dict):
            return SimpleNamespace(**{key: ChatCompletion.model_validate(each) for key, each in value.items()})
        return [ChatCompletion.model_validate(each) for each in value] if isinstance(value, list) else value
