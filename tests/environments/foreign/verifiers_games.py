"""Environments as people write them for verifiers: messages in, messages out, stop conditions as methods."""

import verifiers as vf
from datasets import Dataset

ROWS = [
    {"prompt": [{"role": "user", "content": "Guess my number from 1 to 9."}], "answer": str(n), "info": {"low": 1}}
    for n in (7, 3)
]


class NumberGame(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["guesses"] = []
        return state

    @vf.stop
    async def found(self, state):
        return bool(state["guesses"]) and state["guesses"][-1] == state["answer"]

    async def env_response(self, messages, state, **kwargs):
        guess = messages[-1]["content"].strip()
        state["guesses"].append(guess)
        if guess == state["answer"]:
            reply = [{"role": "user", "content": "Right!"}]
            state["final_env_response"] = reply
            return reply
        if not guess.isdigit():
            raise vf.Error(f"what is {guess}?")
        return [{"role": "user", "content": "higher" if int(guess) < int(state["answer"]) else "lower"}]


def solved(state) -> float:
    return float(bool(state["guesses"]) and state["guesses"][-1] == state["answer"])


async def few(state, info) -> float:
    return info["low"] / max(1, len(state["guesses"]))


def load_environment(max_turns: int = 5):
    rubric = vf.Rubric(funcs=[solved, few], weights=[1.0, 0.5])
    return NumberGame(dataset=Dataset.from_list(ROWS), rubric=rubric, max_turns=max_turns)


def load_sums():
    async def correct_answer(completion, answer) -> float:
        return 1.0 if answer in completion[-1]["content"] else 0.0

    rows = [{"prompt": [{"role": "user", "content": f"What is {n} + {n}?"}], "answer": str(2 * n)} for n in range(5)]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[correct_answer]))


def load_compared():
    def longest(completions) -> list[float]:
        return [float(len(each)) for each in completions]

    return vf.SingleTurnEnv(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[longest]))
