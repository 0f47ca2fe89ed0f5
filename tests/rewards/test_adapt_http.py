"""A reward behind an HTTP address: layouts, answers, what is asked again and what is not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from maieutic.errors import ConfigError
from maieutic.rewards.adapt_http import NoScores, RemoteScores, http_reward
from maieutic.rewards.lift import Judgement, PlainReward
from maieutic.types import Finish, Message, Rollout, Task

TASK = Task("t", (Message("user", "2 + 2?"),), "4", {"level": 3})


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `answers` (status, headers, body); the last one stays. Keeps requests."""

    answers: list[tuple[int, dict[str, str], Any]]
    asked: list[tuple[dict[str, str], Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/reward"


class Answering(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((dict(self.headers), body))
        answers = self.server.answers
        status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Answering)
    made.answers, made.asked = [(200, {}, [1.0, 0.5])], []
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def judge(made: PlainReward, *texts: str) -> list[Judgement]:
    rollouts = [Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text) for text in texts]
    return asyncio.run(made.judge(TASK, rollouts))


def test_a_group_is_posted_once_in_both_layouts(server: Server) -> None:
    made = http_reward(server.url, columns=["level"])
    assert [each.score.reward for each in judge(made, "4", "5")] == [1.0, 0.5]
    ((headers, body),) = server.asked
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "query": ["2 + 2?4", "2 + 2?5"],
        "prompts": ["2 + 2?", "2 + 2?"],
        "completions": ["4", "5"],
        "labels": ["4", "4"],
        "level": [3, 3],
    }
    for layout, lists in (
        ("openrlhf", {"query", "prompts", "labels"}),
        ("plain", {"prompts", "completions", "labels"}),
    ):
        judge(http_reward(server.url, layout=layout), "4", "5")
        assert set(server.asked[-1][1]) == lists


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([1, 0.5], [1.0, 0.5]),
        ({"rewards": [1, None], "scores": [0, 0]}, [1.0, None]),
        ({"scores": [{"right": 1.0, "form": 0.25}, 0]}, [1.25, 0.0]),
    ],
)
def test_answers(server: Server, told: Any, expected: list[float | None]) -> None:
    server.answers = [(200, {}, told)]
    assert [each.score.reward for each in judge(http_reward(server.url), "4", "5")] == expected


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([1.0], "it returned 1 scores for 2 completions"),
        (b"<html>", "its answer is not JSON"),
        ({"detail": "no"}, 'expected a list of scores, or {"rewards": [...]}'),
        ([1.0, "x"], "type str"),
        (b"[NaN, 1]", "a value that is nan"),
    ],
)
def test_answers_that_are_no_scores_fail(server: Server, told: Any, said: str) -> None:
    server.answers = [(200, {}, told)]
    judged = judge(http_reward(server.url, max_failures=1.0), "4", "5")
    assert "failed" in {each.ending.value for each in judged}
    assert said in " ".join(each.score.note for each in judged)


def test_what_may_pass_is_asked_again_after_a_while(server: Server) -> None:
    waits: list[float] = []
    asks = RemoteScores(server.url, sleep=waits.append)
    server.answers = [(503, {}, "busy"), (429, {"Retry-After": "7"}, "slow down"), (500, {}, ""), (200, {}, [1.0])]
    assert asks(["p"], ["c"], ["4"]) == [1.0]
    assert waits[1] == 7.0
    assert waits[0] <= 0.5 < waits[2] <= 2.0  # half of 2⁰, and of 2², is left to chance
    assert len(server.asked) == 4


def test_what_will_not_pass_is_asked_once(server: Server) -> None:
    waits: list[float] = []
    server.answers = [(422, {}, "field 'prompts' is missing")]
    with pytest.raises(
        NoScores, match=r"after 1 tries; .* 422 .*field 'prompts' is missing.*Remedy: see that it is asked"
    ):
        RemoteScores(server.url, sleep=waits.append)(["p"], ["c"], ["4"])
    assert (waits, len(server.asked)) == ([], 1)


def test_the_last_failure_is_told_after_the_retries(server: Server) -> None:
    server.answers = [(502, {}, "no upstream")]
    with pytest.raises(NoScores, match=r"after 3 tries; .* 502 .*no upstream.*Remedy: see that it runs"):
        RemoteScores(server.url, retries=2, sleep=lambda seconds: None)(["p"], ["c"], ["4"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(NoScores, match=r"after 2 tries; .*refused"):
        RemoteScores(closed, retries=1, sleep=lambda seconds: None)(["p"], ["c"], ["4"])


def test_the_time_limit_holds_for_all_tries_together(server: Server) -> None:
    server.answers = [(429, {"Retry-After": "3600"}, "")]
    (judged,) = judge(http_reward(server.url, timeout_seconds=5, max_failures=1.0), "4")
    assert judged.ending.value == "failed"
    assert "after 1 tries" in judged.score.note
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        made = http_reward(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_seconds=0.3, max_failures=1.0)
        (judged,) = judge(made, "4")
    assert judged.ending.value in ("failed", "timed out")
    assert judged.score.reward is None


def test_a_token_is_sent_and_never_shown(server: Server) -> None:
    import os

    os.environ["MAIEUTIC_TEST_TOKEN"] = "secret-1"
    try:
        judge(http_reward(server.url, token_env="MAIEUTIC_TEST_TOKEN"), "4", "5")
        assert server.asked[0][0]["Authorization"] == "Bearer secret-1"
        server.answers = [(401, {}, "who?")]
        judged = judge(http_reward(server.url, token_env="MAIEUTIC_TEST_TOKEN", max_failures=1.0), "4")
        assert "secret-1" not in judged[0].detail
    finally:
        del os.environ["MAIEUTIC_TEST_TOKEN"]


def test_impossible_settings_are_refused() -> None:
    for settings in ({"layout": "soap"}, {"retries": -1}, {"token_env": "NO_SUCH_VARIABLE_HERE"}):
        with pytest.raises(ConfigError, match="http://x"):
            http_reward("http://x", **settings)  # type: ignore[arg-type]
