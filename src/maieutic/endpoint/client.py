"""Any server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, `transformers serve`, hosted ones.

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "judge", api_key_env="JUDGE_KEY", requests_per_minute=600)
    reply = await endpoint.chat([Message("user", "Is 91 prime?")])
    reply.outcome, reply.text, reply.bill

A request that finds nobody, a busy or failing server, or half an answer is made again, after a wait that doubles, or
for as long as the server asks (Retry-After). What cannot get better is said at once. Every request has a time limit
from the first byte to the last, which is kept in a thread of its own, whatever the caller's loop is busy with.

The key is read from an environment variable; it goes into one header and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from maieutic.endpoint.pace import Pace, backoff, retry_after
from maieutic.endpoint.reading import (
    NotUnderstood,
    read_chat,
    read_completion,
    read_detokenized,
    read_judged,
    read_limit,
    tokens_of,
)
from maieutic.endpoint.reply import PASSING, WITH_TEXT, Bill, Outcome, Reply
from maieutic.errors import ConfigError
from maieutic.loops import LoopThread
from maieutic.types import Message

log = logging.getLogger(__name__)

#: An answer larger than this is none.
MOST_BYTES = 64 << 20
#: A server that asks for a longer silence than this is taken to be away.
LONGEST_SILENCE = 300.0


def http_library() -> Any:
    """httpx under the name by which huggingface_hub brought it along; raises ConfigError where it brought neither."""
    for name in ("httpx2", "httpx"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ConfigError("asking a server over HTTP needs the package httpx; pip install httpx")


@dataclass(frozen=True)
class Terms:
    """How an endpoint is asked: `extra` goes into every request as it stands; prices are for a million tokens.

    Raises ConfigError for what cannot be kept to.
    """

    timeout_seconds: float = 60.0
    retries: int = 4
    first_wait_seconds: float = 0.5
    requests_per_minute: float | None = None
    concurrent: int = 16
    max_tokens_name: str = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        rate = self.requests_per_minute
        good = self.timeout_seconds > 0 and self.retries >= 0 and self.concurrent >= 1 and self.first_wait_seconds >= 0
        if not good or (rate is not None and not rate > 0):
            raise ConfigError(
                f"endpoint: got timeout_seconds={self.timeout_seconds}, retries={self.retries}, "
                f"first_wait_seconds={self.first_wait_seconds}, concurrent={self.concurrent}, "
                f"requests_per_minute={rate}; expected a time limit and a rate above 0, no negative number of retries "
                "or seconds, and at least one request at a time"
            )

    def priced(self, bill: Bill) -> Bill:
        """The bill with what its tokens cost."""
        spent = bill.prompt_tokens * self.prompt_price + bill.completion_tokens * self.completion_price
        return bill._replace(price=spent / 1e6)


class Endpoint:
    """A model behind a URL (which ends in /v1, mostly). `bill` is what it has cost so far.

    `api_key_env` names the environment variable that holds the key. Further settings are those of `Terms`. Raises
    ConfigError for a URL that is none or has a password in it, and for a variable that is not set.
    """

    def __init__(self, url: str, model: str, *, api_key_env: str | None = None, **terms: Any) -> None:
        self.url = _checked(url)
        self.model = model
        self.terms = Terms(**terms)
        self.bill = Bill()
        self._key = "" if api_key_env is None else _key_of(api_key_env, self.url)
        self._pace = Pace(self.terms.requests_per_minute)
        self._connections: _Connections | None = None
        self._thread = LoopThread("maieutic-endpoint")
        self._plain = False  # whether the server was found to know no schemas

    @property
    def name(self) -> str:
        """URL, model, and what else goes into every request."""
        more = f" {json.dumps(dict(self.terms.extra), sort_keys=True)}" if self.terms.extra else ""
        return f"{self.url} {self.model}{more}"

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        sample: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The assistant's next message. A server that knows no schemas is asked without, which is logged once."""
        body = self._body(max_tokens, temperature, sample)
        body["messages"] = [{"role": message.role, "content": message.content} for message in messages]
        if schema is None or self._plain:
            return await self._thread.run(self._ask("chat/completions", body, read_chat))
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}
        reply = await self._thread.run(self._ask("chat/completions", {**body, "response_format": form}, read_chat))
        if reply.outcome is not Outcome.REFUSED:
            return reply
        again = await self._thread.run(self._ask("chat/completions", body, read_chat))
        if again.outcome in WITH_TEXT and not self._plain:
            self._plain = True
            log.warning("%s takes no JSON schema (%s); it is asked for JSON in words only", self.url, reply.note)
        return replace(again, bill=reply.bill.plus(again.bill)._replace(failures=again.bill.failures))

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        sample: int = 0,
        logprobs: int = 0,
        echo: bool = False,
    ) -> Reply:
        """What follows a text or token ids. `logprobs=k` adds the log-prob of each token and the k likeliest ones;
        `echo` those of the prompt's tokens as well. A server that ignores either is NOT_UNDERSTOOD, not believed.
        """
        body = self._body(max_tokens, temperature, sample)
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        if logprobs:
            body["logprobs"] = logprobs
        if echo:
            body["echo"] = True
        return await self._thread.run(self._ask("completions", body, lambda data: read_completion(data, logprobs > 0)))

    async def judge(self, tokens: Sequence[int], *, top: int | None = 1) -> Reply:
        """How likely the model finds each of these tokens after those before it, and the `top` likeliest in its place
        (None: all, where the server allows it): `Reply.read`, at temperature 1. vLLM says this (`prompt_logprobs`); a
        server that does not, or that read other tokens, is NOT_UNDERSTOOD.
        """
        body = self._body(1, 0.0, 0)  # no server writes nothing
        asked = {"prompt": list(tokens), "prompt_logprobs": -1 if top is None else top, "return_token_ids": True}
        return await self._thread.run(
            self._ask("completions", {**body, **asked}, lambda data: read_judged(data, tokens, top))
        )

    async def text_of(self, tokens: Sequence[int]) -> Reply:
        """How the server's tokenizer writes these ids; vLLM, SGLang and others have this beside the protocol."""
        body = {"model": self.model, "tokens": list(tokens)}
        return await self._thread.run(self._ask("/detokenize", body, read_detokenized))

    async def reads(self) -> Reply:
        """How many tokens the model can read: `Reply.limit`. vLLM says it."""
        body = {"model": self.model, "prompt": "a", "add_special_tokens": False}
        return await self._thread.run(self._ask("/tokenize", body, read_limit))

    def close(self) -> None:
        """Drop the connections; the next request makes new ones."""
        self._thread.close()

    def _body(self, max_tokens: int, temperature: float, sample: int) -> dict[str, Any]:
        body = {"model": self.model, self.terms.max_tokens_name: max_tokens, "temperature": temperature}
        return {**body, **({"seed": sample} if temperature else {}), **self.terms.extra}

    async def _ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Reply]) -> Reply:
        """Ask until there is an answer, or no hope of one. In the endpoint's own thread."""
        began, bill = time.monotonic(), Bill()
        async with self._connected().slots:
            for attempt in range(self.terms.retries + 1):
                await self._pace.turn()
                reply, silence = await self._attempt(path, body, read)
                bill = bill.plus(reply.bill)._replace(requests=attempt + 1, retries=attempt)
                if reply.outcome not in PASSING or attempt == self.terms.retries or (silence or 0) > LONGEST_SILENCE:
                    break
                if silence is not None:
                    self._pace.silence(silence)
                else:
                    await asyncio.sleep(backoff(attempt, first=self.terms.first_wait_seconds))
        failed = int(reply.outcome not in WITH_TEXT)
        bill = self.terms.priced(bill._replace(failures=failed, seconds=time.monotonic() - began))
        self.bill = self.bill.plus(bill)
        tries = f" ({attempt + 1} attempts)" if failed and attempt else ""
        note = self._without_key(f"{self.url}: {reply.note}{tries}") if reply.note else ""
        return replace(reply, note=note, bill=bill)

    async def _attempt(
        self, path: str, body: Mapping[str, Any], read: Callable[[Any], Reply]
    ) -> tuple[Reply, float | None]:
        """One request, and the silence that the server asked for, if it did."""
        http = http_library()
        try:
            async with asyncio.timeout(self.terms.timeout_seconds):
                status, headers, content = await self._post(path, body)
        except TimeoutError:
            return Reply(Outcome.TIMED_OUT, note=f"no answer within {self.terms.timeout_seconds:g} s"), None
        except (http.ConnectError, http.ProxyError, http.UnsupportedProtocol) as error:
            return Reply(Outcome.UNREACHABLE, note=str(error) or type(error).__name__), None
        except (http.TransportError, http.DecodingError, _TooLarge) as error:
            return Reply(Outcome.HALF, note=str(error) or type(error).__name__), None
        if status != 200:
            wait = retry_after(headers.get("retry-after"))
            return Reply(_outcome(status), note=f"HTTP {status}: {_excerpt(content)}"), wait
        kind = headers.get("content-type", "none")
        if "json" not in kind:
            note = f"got an answer of type {kind!r}; expected JSON. Is the URL right (…/v1)? {_excerpt(content)}"
            return Reply(Outcome.NOT_UNDERSTOOD, note=note), None
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            return Reply(Outcome.HALF, note=f"its JSON breaks off or is none ({error}): {_excerpt(content)}"), None
        try:
            return replace(read(data), bill=tokens_of(data)), None
        except NotUnderstood as error:
            return Reply(Outcome.NOT_UNDERSTOOD, note=f"{error}: {_excerpt(content)}", bill=tokens_of(data)), None

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self._key}"} if self._key else {})
        text = json.dumps(dict(body))  # ASCII: half a character, which texts may hold, has no place in UTF-8
        client = self._connected().client
        # what is no part of the protocol lies beside it: …/detokenize, not …/v1/detokenize
        where = f"{self.url}/{path}" if path[0] != "/" else f"{self.url.removesuffix('/v1')}{path}"
        async with client.stream("POST", where, content=text, headers=headers) as response:
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise _TooLarge(f"an answer of more than {MOST_BYTES >> 20} MiB")
            return response.status_code, response.headers, bytes(content)

    def _connected(self) -> _Connections:
        if self._connections is None or self._connections.loop is not asyncio.get_running_loop():
            self._connections = _Connections(self.terms.concurrent)
        return self._connections

    def _without_key(self, text: str) -> str:
        """A server may quote the key in its complaint."""
        return text.replace(self._key, "***") if self._key else text


class _Connections:
    """What belongs to one event loop: the client with its connections, and who may use them at a time."""

    def __init__(self, concurrent: int) -> None:
        http = http_library()
        # no limit of its own: an attempt is bounded as a whole, connecting and the last byte included
        limits = http.Limits(max_connections=concurrent, keepalive_expiry=30.0)
        self.client: Any = http.AsyncClient(timeout=None, limits=limits, follow_redirects=False)
        self.slots = asyncio.Semaphore(concurrent)
        self.loop = asyncio.get_running_loop()


class _TooLarge(Exception):
    pass


def _outcome(status: int) -> Outcome:
    if status == 429:
        return Outcome.BUSY
    return Outcome.TIMED_OUT if status == 408 else Outcome.SERVER_ERROR if status >= 500 else Outcome.REFUSED


def _excerpt(content: bytes) -> str:
    text = " ".join(content[:2000].decode("utf-8", "replace").split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _checked(url: str) -> str:
    http = http_library()
    try:
        parts = urlsplit(url)
        good = bool(http.URL(url).host) and parts.scheme in ("http", "https") and not (parts.query or parts.fragment)
    except (ValueError, http.InvalidURL):
        good = False
    if not good or any(character.isspace() for character in url):
        shown = url if "@" not in url else "…"
        raise ConfigError(f"endpoint: got url {shown!r}; expected one such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ConfigError(
            f"endpoint: got a url of {parts.hostname} with a name or password in it, which would be logged; expected "
            "one without. Put the key into an environment variable and name it: api_key_env"
        )
    return url.rstrip("/")


def _key_of(variable: str, url: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"endpoint {url}: the environment variable {variable} is not set; expected it to hold the API key "
            f"(export {variable}=…). Leave api_key_env out for a server that wants none"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"endpoint {url}: what {variable} holds cannot be an API key; expected plain characters")
    if url.startswith("http:") and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
        log.warning("%s: the API key is sent unencrypted; https would hide it", url)
    return key
