"""Rewards for conversations of several turns, as people write them."""


def last_turn(completions, **kwargs):
    """TRL: the last message of each conversation."""
    return [float(completion[-1]["content"]) for completion in completions]


def first_turn(completions, **kwargs):
    """TRL: the message that functions of single-turn tasks read."""
    return [float(completion[0]["content"]) for completion in completions]


def tool_calls(completions, **kwargs):
    """TRL: how often a tool answered."""
    return [float(sum(message["role"] == "tool" for message in completion)) for completion in completions]


def verifiers_turns(completion, state, parser) -> float:
    """verifiers: the messages of the model."""
    assert state["turn"] == len(parser.get_assistant_messages(completion))
    return float(len([message for message in completion if message["role"] == "assistant"]))


def whole_text(completions: list[str], **kwargs) -> list[float]:
    """TRL, plain text."""
    return [float(len(completion)) for completion in completions]
