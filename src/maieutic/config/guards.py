"""The tables of a config that say what guards do: `[guards.NAME]`, and `guards` of a stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from maieutic.config.strict import Strict


class GuardConfig(Strict):
    """What a guard that looks on while a stage trains does when it sees something; see `maieutic.guards`.

    "note" says it and goes on, "pause" writes a checkpoint and waits for `--resume --acknowledge NAME`, "stop" ends the
    stage. A string instead of the table is the action.
    """

    action: Literal["off", "note", "pause", "stop"] | None = Field(None, description='default: "note"')
    threshold: float | None = Field(None, description="in the guard's own units; default: the guard's")
    window: int | None = Field(None, ge=4, description="steps that are compared with as many earlier ones; default: 6")

    @model_validator(mode="before")
    @classmethod
    def _action_alone(cls, given: Any) -> Any:
        return {"action": given} if isinstance(given, str) else given

    @property
    def told(self) -> dict[str, Any]:
        """What the table says, without what it leaves to others."""
        return self.model_dump(exclude_none=True)
