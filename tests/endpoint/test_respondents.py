"""The respondents in this process: a sampler that is asked in words, and a script."""

from __future__ import annotations

import asyncio

import pytest

from maieutic.backends.local import LocalBackend
from maieutic.backends.toy import ScriptedSampler, ToyChat
from maieutic.endpoint import LocalRespondent, Outcome, Reply, ScriptedRespondent
from maieutic.errors import ConfigError
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.types import Message

CHAT = ToyChat(["is", "it", "right", "yes", "no"])


def ask(respondent, text="is it right", **settings):
    return asyncio.run(respondent.chat([Message("user", text)], **settings))


def test_a_sampler_is_asked_in_words():
    reply = ask(LocalRespondent(ScriptedSampler(lambda prompt, sibling: CHAT.completion("yes it is")), CHAT))
    assert (reply.outcome, reply.text) == (Outcome.ANSWERED, "yes it is")
    assert (reply.bill.requests, reply.bill.prompt_tokens, reply.bill.completion_tokens) == (1, 3, 4)


def test_an_answer_that_is_cut_says_so():
    respondent = LocalRespondent(ScriptedSampler(lambda prompt, sibling: CHAT.completion("yes it is")), CHAT)
    assert ask(respondent, max_tokens=2).outcome is Outcome.CUT


def test_completions_tell_the_log_probs_of_chosen_tokens_and_no_others():
    respondent = LocalRespondent(ScriptedSampler(lambda prompt, sibling: CHAT.encode("yes no")), CHAT)
    reply = asyncio.run(respondent.complete("is it", max_tokens=2, logprobs=1))
    assert reply.logprobs == (("yes", 0.0, {}), ("no", 0.0, {}))
    with pytest.raises(ConfigError, match="expected 0 or 1"):
        asyncio.run(respondent.complete("is it", logprobs=5))


def test_a_model_of_the_local_backend(tmp_path):
    """Greedy answers are the same whoever asks beside; samples differ by their number, and are the same when repeated.
    A prompt that does not fit is refused, not raised."""
    spec = SmallModel(layers=1, width=16, heads=2, kv_heads=1, context=64)
    folder = build_small(tmp_path / "judge", spec, ["is it right ? yes no"], seed=1)
    model = load_causal(folder)
    respondent = LocalRespondent(LocalBackend().sampler(model), model.chat, name=str(folder))

    async def several():
        question = [Message("user", "is it right ?")]
        return await asyncio.gather(
            *(
                respondent.chat(question, max_tokens=8, temperature=t, sample=s)
                for t, s in ((0, 0), (1, 0), (1, 1), (1, 0))
            )
        )

    alone = ask(respondent, "is it right ?", max_tokens=8)
    greedy, first, second, again = asyncio.run(several())
    assert greedy.text == alone.text
    assert first.text == again.text != second.text
    refused = ask(respondent, "yes no " * 60, max_tokens=8)
    assert (refused.outcome, refused.bill.failures) == (Outcome.REFUSED, 1)


def test_a_script_may_fail_as_servers_do():
    respondent = ScriptedRespondent(lambda messages, sample: Reply(Outcome.BUSY, note="later"))
    reply = ask(respondent)
    assert (reply.outcome, reply.why, reply.bill.failures) == (Outcome.BUSY, "busy: later", 1)
    assert respondent.asked == [(Message("user", "is it right"),)]
