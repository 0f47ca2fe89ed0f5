"""A stand-in for verifiers 0.1.9 to 0.2, by its documented interface, as far as environments of several turns need it.

The library itself pins versions that fight with ours. What is modelled: the order in which a rollout calls
`setup_state`, stop conditions, `env_response` and the model; states that look in their row; responses as objects.
"""

from __future__ import annotations

import inspect
from typing import Any

from verifiers import types
from verifiers.types import State

__version__ = "0.1.9 (stand-in)"
__all__ = ["Error", "MultiTurnEnv", "Rubric", "SingleTurnEnv", "State", "stop", "types"]


class Error(Exception):
    """What an environment raises to end a rollout."""


def stop(method: Any) -> Any:
    """Mark a method as a stop condition."""
    method.stop = True
    return method


class Rubric:
    def __init__(self, funcs: Any = (), weights: Any = None) -> None:
        self.funcs = list(funcs)
        self.weights = list(weights or [1.0] * len(self.funcs))


class MultiTurnEnv:
    def __init__(self, dataset: Any = None, rubric: Any = None, max_turns: int = -1, **_: Any) -> None:
        self.dataset, self.rubric, self.max_turns = dataset, rubric or Rubric(), max_turns
        methods = (getattr(self, name) for name in dir(type(self)))
        self._stop_conditions = [method for method in methods if getattr(method, "stop", False)]

    def get_dataset(self) -> Any:
        return self.dataset

    def get_eval_dataset(self) -> Any:
        return self.dataset

    async def setup_state(self, state: State) -> State:
        return state

    @stop
    async def has_error(self, state: State) -> bool:
        return state.get("error") is not None

    @stop
    async def max_turns_reached(self, state: State) -> bool:
        return len(state["trajectory"]) >= self.max_turns > 0

    @stop
    async def has_final_env_response(self, state: State) -> bool:
        return state.get("final_env_response") is not None

    async def is_completed(self, state: State) -> bool:
        for condition in self._stop_conditions:
            if await condition(state):
                return True
        return False

    async def get_prompt_messages(self, state: State) -> list[Any]:
        if not state["trajectory"]:
            return state["prompt"]
        last = state["trajectory"][-1]
        messages = [*last["prompt"], *last["completion"]]
        return [*messages, *await self.env_response(messages, state)]

    async def get_model_response(self, state: State, prompt: list[Any]) -> Any:
        raise AssertionError("a server would be asked")

    async def rollout(self, input: Any, client: Any, model: str, sampling_args: Any = None) -> State:
        state = State(input=dict(input), trajectory=[], completion=None, error=None, final_env_response=None)
        found = await self.setup_state(state)
        state = state if found is None else found
        while not await self.is_completed(state):
            try:
                prompt = await self.get_prompt_messages(state)
                if state.get("final_env_response") is not None:
                    continue
                response = await self.get_model_response(state, prompt)
                message = response.choices[0].message
                said = {"role": "assistant", "content": message.content}
                state["trajectory"].append({"prompt": prompt, "completion": [said]})
            except Error as error:
                state["error"] = error
        if state["trajectory"]:
            last = state["trajectory"][-1]
            said = [*last["prompt"], *last["completion"], *(state["final_env_response"] or [])]
            state["completion"] = said[len(state["prompt"]) :]
        return state


class SingleTurnEnv(MultiTurnEnv):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_turns=1, **kwargs)

    async def env_response(self, messages: Any, state: State) -> Any:
        raise AssertionError("never called")


def load_environment(env_id: str, **kwargs: Any) -> Any:
    """The environment of an installed module."""
    module = __import__(env_id.replace("-", "_"))
    assert inspect.ismodule(module)
    return module.load_environment(**kwargs)
