"""Rewards as people write them for verifiers, with stand-ins for what the library would give: a parser, a Rubric."""

import re


class Parser:
    def parse_answer(self, completion):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        found = re.search(r"\\boxed\{(.*?)\}", text)
        return found.group(1) if found else None

    def get_format_reward_func(self):
        def format_reward_func(completion, **kwargs):
            """Whether the last message has a box."""
            return 1.0 if "\\boxed{" in completion[-1]["content"] else 0.0

        return format_reward_func


class Rubric:
    def __init__(self, funcs, weights=None, parser=None):
        self.funcs = funcs
        self.weights = weights or [1.0] * len(funcs)
        self.parser = parser
        self.class_objects = {"parser": parser}


parser = Parser()


def correct_answer_reward_func(parser, completion, answer, **kwargs):
    """With the environment's parser."""
    response = parser.parse_answer(completion) or ""
    return 1.0 if response == answer else 0.0


async def exact_match(completion, answer) -> float:
    """As in the documentation of environments."""
    response = completion[-1]["content"]
    return 1.0 if answer in response else 0.0


def turns_and_info(state, info):
    """Of the state and the row."""
    return state["turn"] + 10.0 * info["level"] + (0.5 if state["completion"][-1]["role"] == "assistant" else 0.0)


def lcs_reward_func(completion: str, answer: str, prompt: str, **kwargs) -> float:
    """Of texts: the environment was one of plain completions."""
    return len(set(completion.split()) & set(answer.split())) / max(1, len(completion.split()))


def relative_length(completions, answers, states):
    """Of the whole group."""
    lengths = [len(completion[-1]["content"]) for completion in completions]
    return [1.0 - length / max(1, max(lengths)) for length in lengths]


rubric = Rubric(
    funcs=[correct_answer_reward_func, parser.get_format_reward_func(), relative_length],
    weights=[1.0, 0.2, 0.0],
    parser=parser,
)
