"""Tools in chat templates: where a template knows them it is used, and nothing that a tool said is ever left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maieutic.environments.openings import opening_tokens
from maieutic.environments.tool_functions import tool_function
from maieutic.environments.tool_use import Manner, ToolEpisode
from maieutic.environments.toolbox import calculator
from maieutic.models.causal import load_tokenizer
from maieutic.models.chat import ChatFormat, chat_format
from maieutic.models.small import SmallModel, build_small
from maieutic.types import Message

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EVERYBODY = "{% for m in messages %}" + TURN + "{% endfor %}" + OPEN
#: As models that were taught to call tools have it.
WITH_TOOLS = "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}" + EVERYBODY  # fmt: skip  # noqa: E501
#: Leaves out whoever is neither user nor assistant, without a word.
SILENT = "{% for m in messages %}{% if m.role in ['user', 'assistant', 'system'] %}" + TURN + "{% endif %}{% endfor %}" + OPEN  # fmt: skip  # noqa: E501
#: Refuses them, and a system message too.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role in ['tool', 'system'] %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}" + TURN + "{% endfor %}" + OPEN
)
ASKED = (Message("user", "3 * 4 ?"),)
RESULTS = (Message("tool", "12"), Message("tool", "error: busy"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tools")
    build_small(place / "bpe", SmallModel(layers=1, width=32), ["a b"] * 3, tokenizer="bpe", vocabulary_size=300)
    return place / "bpe"


def chat(folder: Path, template: str) -> ChatFormat:
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return chat_format(tokenizer)


def shown(form: ChatFormat, tokens: Any) -> str:
    return str(form.tokenizer.decode(list(tokens), skip_special_tokens=False))


def opening(form: ChatFormat, describe: bool = True) -> str:
    episode = ToolEpisode(ASKED, [tool_function(calculator)], Manner(describe=describe))
    return shown(form, opening_tokens(form, episode.opening, episode))


def test_schemas_go_where_the_template_puts_them(folder):
    text = opening(chat(folder, WITH_TOOLS))
    assert text.startswith('<|im_start|>system\nTools: {"type": "function", "function": {"name": "calculator"')
    assert text.endswith("<|im_start|>user\n3 * 4 ?<|im_end|>\n<|im_start|>assistant\n")
    assert "You may use tools" not in text


@pytest.mark.parametrize(
    ("template", "begins"),
    [(EVERYBODY, "<|im_start|>system\nYou may use tools."), (STRICT, "<|im_start|>user\nYou may use tools.")],
)
def test_a_template_without_tools_tells_of_them_in_words(folder, template, begins):
    text = opening(chat(folder, template))
    assert text.startswith(begins)
    assert "- calculator(expression: string)" in text
    assert text.endswith("3 * 4 ?<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_that_knows_its_tools_need_not_be_told(folder):
    assert opening(chat(folder, WITH_TOOLS), describe=False) == shown(
        chat(folder, EVERYBODY), chat(folder, EVERYBODY).prompt(ASKED)
    )


def test_a_plain_format_has_the_words_too(folder):
    form = chat_format(load_tokenizer(folder), "plain")
    assert form.prompt_with_tools(ASKED, [tool_function(calculator).schema]) is None
    assert "You may use tools" in opening(form)


def test_what_tools_say_is_shown_in_their_role_or_the_users(folder):
    """A template that drops messages of tools silently is the dangerous one: the model would never see a result."""
    own = chat(folder, EVERYBODY)
    assert shown(own, own.continuation(RESULTS)) == (
        "\n<|im_start|>tool\n12<|im_end|>\n<|im_start|>tool\nerror: busy<|im_end|>\n<|im_start|>assistant\n"
    )
    for template in (SILENT, STRICT):
        form = chat(folder, template)
        assert shown(form, form.continuation(RESULTS)) == (
            "\n<|im_start|>user\n<tool_response>\n12\n</tool_response>\n<tool_response>\nerror: busy\n"
            "</tool_response><|im_end|>\n<|im_start|>assistant\n"
        )


def test_a_turn_that_is_begun_stays_open(folder):
    form = chat(folder, WITH_TOOLS)
    schemas = [tool_function(calculator).schema]
    begun = form.prompt_with_tools((*ASKED, Message("assistant", "So")), schemas)
    assert begun == (*(form.prompt_with_tools(ASKED, schemas) or ()), *form.encode("So"))
