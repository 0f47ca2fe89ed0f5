"""Asking a server: what goes right, and each thing that can go wrong, provoked by a server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

import pytest
from misbehaving import broken_json, chat_json, closes, half_of_it, says, send, status, web_page

from maieutic.endpoint import Bill, Endpoint, Outcome, Reply
from maieutic.errors import ConfigError
from maieutic.types import Message

HELLO = [Message("system", "Be brief."), Message("user", "Is 91 prime?")]


def ask(endpoint: Endpoint, **settings) -> Reply:
    return asyncio.run(endpoint.chat(HELLO, **settings))


def test_a_question_and_its_answer(server):
    server.behaviours = [says("No: 7 · 13.")]
    endpoint = server.endpoint(prompt_price=2.0, completion_price=10.0)
    reply = ask(endpoint, max_tokens=50)
    assert (reply.outcome, reply.text) == (Outcome.ANSWERED, "No: 7 · 13.")
    assert server.bodies == [
        {
            "path": "/v1/chat/completions", "model": "judge", "max_tokens": 50, "temperature": 0.0,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 91 prime?"}],
        }
    ]  # fmt: skip
    # 7 tokens read at 2 and 3 written at 10 for a million: 44e-6
    assert reply.bill._replace(seconds=0.0) == Bill(1, 0, 0, 0, 7, 3, 0.0, pytest.approx(44e-6))
    assert endpoint.bill == reply.bill


def test_samples_differ_by_their_seed_and_settings_of_ones_own_go_along(server):
    endpoint = server.endpoint(max_tokens_name="max_completion_tokens", extra={"top_k": 5})
    ask(endpoint, temperature=0.7, sample=3, max_tokens=9)
    sent = server.bodies[0]
    assert (sent["seed"], sent["top_k"], sent["max_completion_tokens"]) == (3, 5, 9)
    assert "max_tokens" not in sent
    assert endpoint.name == f'{server.url} judge {{"top_k": 5}}'


def test_half_a_character_in_a_prompt_is_no_reason_to_fail(server):
    reply = asyncio.run(server.endpoint().chat([Message("user", "smile \ud83d")]))
    assert reply.answered


def test_questions_go_out_side_by_side_and_no_more_than_allowed(server):
    """With 8 questions, 3 at a time, the server sees 3 together and never 4."""
    import threading

    lock, now, most = threading.Lock(), [0], [0]

    def slow(request, body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        send(request, 200, chat_json("yes"))

    server.behaviours = [slow]
    endpoint = server.endpoint(concurrent=3)

    async def all_of_them():
        return await asyncio.gather(*(endpoint.chat([Message("user", str(i))]) for i in range(8)))

    assert all(reply.answered for reply in asyncio.run(all_of_them()))
    assert most[0] == 3


def test_connections_outlive_the_callers_loop(server):
    endpoint = server.endpoint()
    assert [ask(endpoint).answered for _ in range(3)] == [True] * 3  # three loops, one after the other


def test_closing_ends_what_is_under_way_and_the_next_question_starts_anew(server):
    server.behaviours = [server.hangs, says("again")]
    endpoint = server.endpoint()

    async def closed_meanwhile():
        asked = asyncio.ensure_future(endpoint.chat(HELLO))
        while not server.bodies:
            await asyncio.sleep(0.01)
        endpoint.close()
        await asked

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(closed_meanwhile())
    assert ask(endpoint).text == "again"


def test_half_a_character_in_an_answer_becomes_a_mark(server):
    server.behaviours = [says("smile \ud83d")]
    assert ask(server.endpoint()).text == "smile ?"


FAILURES = {
    "500": (status(500), Outcome.SERVER_ERROR, "HTTP 500"),
    "429": (status(429), Outcome.BUSY, "HTTP 429"),
    "half an answer": (half_of_it, Outcome.HALF, ""),
    "JSON without an end": (status(200, "[" * 200_000), Outcome.HALF, "breaks off"),
    "half of its JSON": (broken_json, Outcome.HALF, "breaks off"),
    "closed": (closes, Outcome.HALF, ""),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_may_pass_is_tried_again(server, name):
    behaviour, outcome, note = FAILURES[name]
    server.behaviours = [behaviour, behaviour, says("at last")]
    reply = ask(server.endpoint(retries=2))
    assert (reply.outcome, reply.text) == (Outcome.ANSWERED, "at last")
    assert (reply.bill.requests, reply.bill.retries, reply.bill.failures) == (3, 2, 0)
    server.behaviours = [behaviour]
    failed = ask(server.endpoint(retries=1))
    assert failed.outcome is outcome
    assert note in failed.note
    assert "(2 attempts)" in failed.note
    assert (failed.bill.requests, failed.bill.failures) == (2, 1)


HOPELESS = {
    "401": (status(401, '{"error": "wrong key"}'), Outcome.REFUSED, "wrong key"),
    "404": (status(404), Outcome.REFUSED, "HTTP 404"),
    "moved": (status(302, "", Location="http://127.0.0.1:1/"), Outcome.REFUSED, "HTTP 302"),
    "web page": (web_page, Outcome.NOT_UNDERSTOOD, "got an answer of type 'text/html'; expected JSON"),
    "no choices": (status(200, '{"object": "list"}'), Outcome.NOT_UNDERSTOOD, "expected an answer with `choices`"),
    "no text": (status(200, chat_json(None)), Outcome.NOT_UNDERSTOOD, "message.content"),
    "a list": (status(200, "[1, 2]"), Outcome.NOT_UNDERSTOOD, "choices"),
    "filtered": (says("…", "content_filter"), Outcome.REFUSED, "content_filter"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_what_cannot_get_better_is_said_at_once(server, name):
    behaviour, outcome, note = HOPELESS[name]
    server.behaviours = [behaviour]
    reply = ask(server.endpoint())
    assert reply.outcome is outcome
    assert note in reply.note
    assert len(server.bodies) == 1


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reply = ask(Endpoint(f"http://127.0.0.1:{port}/v1", "judge", retries=1, first_wait_seconds=0.01))
    assert reply.outcome is Outcome.UNREACHABLE
    assert reply.bill.requests == 2
    assert f"127.0.0.1:{port}" in reply.note


@pytest.mark.parametrize("how", ["hangs", "drips"])
def test_a_time_limit_holds_for_the_whole_answer(server, how):
    server.behaviours = [getattr(server, how)]
    reply = ask(server.endpoint(timeout_seconds=0.5, retries=0))
    assert reply.outcome is Outcome.TIMED_OUT
    assert "no answer within 0.5 s" in reply.note


def test_a_caller_that_computes_meanwhile_loses_no_answer(server):
    """Its loop is blocked for longer than the limit, as a sampler's is; the answer came within it."""

    async def busy():
        asked = asyncio.ensure_future(server.endpoint(timeout_seconds=2.0, retries=0).chat(HELLO))
        await asyncio.sleep(0)
        time.sleep(2.2)
        return await asked

    assert asyncio.run(busy()).answered


def test_a_server_that_asks_for_silence_gets_it(server):
    server.behaviours = [status(429, Retry_After="1"), says("thanks")]
    assert ask(server.endpoint(retries=1)).text == "thanks"
    assert server.times[1] - server.times[0] >= 1.0


def test_a_silence_of_an_hour_is_not_waited_for(server):
    server.behaviours = [status(429, Retry_After="3600")]
    reply = ask(server.endpoint())
    assert (reply.outcome, len(server.bodies)) == (Outcome.BUSY, 1)


def test_a_rate_is_kept(server):
    endpoint = server.endpoint(requests_per_minute=600)  # 0.1 s apart

    async def five():
        await asyncio.gather(*(endpoint.chat([Message("user", str(i))]) for i in range(5)))

    asyncio.run(five())
    assert server.times[-1] - server.times[0] >= 0.35  # four times 0.1, less what the last one may arrive earlier


def test_a_schema_is_sent_and_left_out_where_the_server_knows_none(server, caplog):
    schema = {"type": "object"}
    ask(server.endpoint(), schema=schema)
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == schema

    def knows_none(request, body):
        if "response_format" in body:
            send(request, 422, '{"detail": "unexpected field"}')
        else:
            send(request, 200, chat_json("{}"))

    server.behaviours = [knows_none]
    server.bodies.clear()
    endpoint = server.endpoint()
    with caplog.at_level(logging.WARNING, "maieutic"):
        first, second = ask(endpoint, schema=schema), ask(endpoint, schema=schema)
    assert [first.text, second.text] == ["{}", "{}"]
    assert (first.bill.requests, first.bill.failures, second.bill.requests) == (2, 0, 1)
    assert len(caplog.records) == 1


def test_completions_with_log_probs(server):
    told = {"tokens": [" no", "."], "token_logprobs": [None, -0.5], "top_logprobs": [None, {".": -0.5, "!": -1.5}]}
    answer = {"choices": [{"text": " no.", "finish_reason": "length", "logprobs": told}]}
    server.behaviours = [status(200, json.dumps(answer))]
    reply = asyncio.run(server.endpoint().complete((5, 6), max_tokens=2, logprobs=2, echo=True))
    assert (reply.outcome, reply.text) == (Outcome.CUT, " no.")
    assert reply.logprobs == ((" no", None, {}), (".", -0.5, {".": -0.5, "!": -1.5}))
    sent = server.bodies[0]
    assert (sent["path"], sent["prompt"], sent["logprobs"], sent["echo"]) == ("/v1/completions", [5, 6], 2, True)


def test_a_server_that_ignores_log_probs_is_not_believed(server):
    server.behaviours = [status(200, json.dumps({"choices": [{"text": "no", "finish_reason": "stop"}]}))]
    assert asyncio.run(server.endpoint().complete("a")).text == "no"
    reply = asyncio.run(server.endpoint().complete("a", logprobs=1))
    assert reply.outcome is Outcome.NOT_UNDERSTOOD
    assert "log-probs were asked for" in reply.note


def test_the_key_goes_into_one_header_and_nowhere_else(server, caplog):
    """A server that quotes the key in its complaint does not get it into a note, a log or an error."""
    import os

    key = "sk-very-secret-123"
    os.environ["MAIEUTIC_TEST_KEY"] = key
    try:
        server.behaviours = [status(401, json.dumps({"error": f"incorrect key {key}"}))]
        with caplog.at_level(logging.DEBUG):
            endpoint = server.endpoint(api_key_env="MAIEUTIC_TEST_KEY")
            reply = ask(endpoint)
    finally:
        del os.environ["MAIEUTIC_TEST_KEY"]
    assert server.headers[0]["authorization"] == f"Bearer {key}"
    assert "incorrect key ***" in reply.note
    seen = [reply.note, repr(endpoint), endpoint.name, caplog.text, json.dumps(server.bodies)]
    assert not [text for text in seen if key in text]


@pytest.mark.parametrize(
    ("url", "terms", "said"),
    [
        ("127.0.0.1:8000", {}, "expected one such as http://127.0.0.1:8000/v1"),
        ("ftp://host/v1", {}, "expected one such as"),
        ("http://[::1/v1", {}, "expected one such as"),
        ("http://my host/v1", {}, "expected one such as"),
        ("http://host:port/v1", {}, "expected one such as"),
        ("http://me:secret@host/v1", {}, "a name or password in it"),
        ("http://host/v1?key=1", {}, "expected one such as"),
        ("http://host/v1", {"api_key_env": "MAIEUTIC_NOT_SET"}, "MAIEUTIC_NOT_SET is not set"),
        ("http://host/v1", {"timeout_seconds": 0.0}, "timeout_seconds=0.0"),
        ("http://host/v1", {"concurrent": 0}, "at least one request at a time"),
        ("http://host/v1", {"requests_per_minute": 0}, "a rate above 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(url, terms, said):
    with pytest.raises(ConfigError) as refused:
        Endpoint(url, "judge", **terms)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
