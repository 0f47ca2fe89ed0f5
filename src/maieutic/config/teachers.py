"""The table of a stage's teacher: one model, a recording, a server, or several of these.

[stages.teacher]                       one of path, recorded, url, mixture, by_tasks
path = "models/teacher"                a folder or a Hub id, loaded beside the policy
recorded = "data/teacher-top20"        what `maieutic teacher record` wrote
url = "http://127.0.0.1:8000/v1"       a server that says log-probs of given tokens (vLLM), and its `model`

[[stages.teacher.mixture]]             several at once, each such a table with a `weight`
path = "models/a"
weight = 0.7

[stages.teacher.by_tasks.gsm8k]        each for its own taskset
path = "models/b"
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from maieutic.config.strict import Strict

#: Keys that say where a teacher comes from.
PLACES = ("path", "recorded", "url", "mixture", "by_tasks")
#: Key → the places that it has something to do with, where these are not all.
BELONGS = {
    "revision": ("path",),
    "dtype": ("path",),
    "model": ("url",),
    "api_key_env": ("url",),
    "request": ("url",),
    "top_k": ("path", "recorded", "url"),
    "too_long": ("path", "url"),
    "align": ("path",),
}
#: Candidates where nothing is said: what vLLM allows unless it is told otherwise, and more of a model in this process.
CANDIDATES = {"path": 64, "url": 20, "recorded": None}


class RequestConfig(Strict):
    """How a server is asked; see `maieutic.endpoint.client.Terms`. Prices are for a million tokens."""

    timeout_seconds: float = Field(120.0, gt=0)
    retries: int = Field(4, ge=0)
    requests_per_minute: float | None = Field(None, gt=0)
    concurrent: int = Field(16, ge=1)
    prompt_price: float = Field(0.0, ge=0)
    completion_price: float = Field(0.0, ge=0)


class TeacherConfig(Strict):
    """A model to imitate, with the policy's tokens; see `maieutic.core.distillation`.

    `top_k` candidates are kept for each token, or "all" (`[B, T, V]` in memory: for small models). Unless it is said,
    64 of a model that is loaded, 20 of one that is served, all that were recorded.
    """

    path: str | None = Field(None, description="a folder or a Hub id")
    revision: str | None = None
    dtype: str = Field("auto", description="float32 on a CPU, bfloat16 elsewhere; or a name")
    recorded: str | None = Field(None, description="a folder that `maieutic teacher record` wrote")
    url: str | None = Field(None, description="of a server that says log-probs of given tokens (vLLM)")
    model: str | None = Field(None, description="how the server calls it")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key")
    request: RequestConfig = RequestConfig()  # type: ignore[call-arg]
    mixture: list[TeacherConfig] | None = Field(None, min_length=2, description="several at once, by weight")
    by_tasks: dict[str, TeacherConfig] | None = Field(None, min_length=1, description="taskset → its teacher")
    weight: float | None = Field(None, gt=0, description="in a mixture; default: 1")
    top_k: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    align: bool = Field(False, description="its tokens are others: log-probs are summed over spans that both share")
    too_long: Literal["refuse", "cut"] = Field("refuse", description="cut: rows teach as far as the teacher can read")

    @model_validator(mode="after")
    def _one_of(self) -> TeacherConfig:
        given = [name for name in PLACES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'none'}; expected exactly one of {', '.join(PLACES)}")
        for key in sorted(self.model_fields_set & BELONGS.keys()):
            # a default does nothing anywhere, and a run's own config, which is read again to go on, has all of them
            if given[0] not in BELONGS[key] and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"got {key}, which does nothing for a teacher with {given[0]}; expected it with "
                    f"{' or '.join(BELONGS[key])}"
                )
        if self.url is not None and self.model is None:
            raise ValueError("got a url without a model; expected how the server calls it (vLLM: --served-model-name)")
        inside = self.mixture or list((self.by_tasks or {}).values())
        if any(each.align for each in inside):
            raise ValueError("got align = true for one of several teachers; expected it for one that is alone")
        if self.align and (self.too_long == "cut" or self.top_k is not None):
            raise ValueError(
                'got align = true with too_long = "cut" or top_k; a teacher of other tokens has no candidates among '
                "the student's, and no token of theirs at which to cut. Leave these out"
            )
        if self.by_tasks is not None and any(each.weight is not None for each in inside):
            raise ValueError("got a weight for a teacher by tasks; expected it in a mixture, where several speak")
        return self

    @property
    def place(self) -> str:
        """Which of `PLACES` it comes from."""
        return next(name for name in PLACES if getattr(self, name) is not None)

    @property
    def candidates(self) -> int | None:
        """How many are kept; None for all."""
        if self.top_k is None:
            return CANDIDATES[self.place]
        return None if isinstance(self.top_k, str) else self.top_k

    def each(self) -> Iterator[TeacherConfig]:
        """The teachers that this is made of: itself, or those of a mixture or by tasks, however deep."""
        inside = self.mixture or list((self.by_tasks or {}).values())
        if not inside:
            yield self
        for teacher in inside:
            yield from teacher.each()

    def told(self) -> str:
        """In words."""
        if self.mixture:
            return " + ".join(f"{teacher.weight or 1:g} × ({teacher.told()})" for teacher in self.mixture)
        if self.by_tasks:
            return "; ".join(f"for {name}: {teacher.told()}" for name, teacher in self.by_tasks.items())
        who = {"path": self.path, "recorded": f"as recorded in {self.recorded}", "url": f"{self.model} at {self.url}"}
        kept = "all" if self.candidates is None else self.candidates
        if self.align:
            return f"{who[self.place]}, whose tokens are others: log-probs of spans that both share"
        cut = ", rows cut where it can read no further" if self.too_long == "cut" else ""
        return f"{who[self.place]}, {kept} candidates a token{cut}"

    @property
    def terms(self) -> dict[str, Any]:
        """What goes to `Endpoint` beside URL and model."""
        return {"api_key_env": self.api_key_env, **self.request.model_dump()}
