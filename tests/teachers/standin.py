"""A stand-in for vLLM: it says of given token ids what vLLM would say, from a model in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from maieutic.endpoint import Endpoint
from maieutic.models.causal import CausalModel


class StandIn:
    """Serves a model. `fail` makes the next so many requests end in HTTP 503; `beside` says which of the paths beside
    the protocol there are; `change` is applied to each answer before it is sent."""

    def __init__(self, model: CausalModel, limit: int = 128) -> None:
        self.model, self.limit = model, limit
        self.fail = 0
        self.beside = {"/tokenize", "/detokenize"}
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.asked: list[str] = []
        outer, lock = self, threading.Lock()

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(self.path)
                    failing = outer.fail > 0
                    outer.fail -= failing
                    code, answer = (503, {"error": "busy"}) if failing else outer.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def endpoint(self, **terms: Any) -> Endpoint:
        """An impatient client."""
        return Endpoint(self.url, "teacher", **{"timeout_seconds": 20.0, "first_wait_seconds": 0.01, **terms})

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        tokenizer = self.model.tokenizer
        if path == "/v1/completions" and "prompt_logprobs" in body:
            return 200, self.change(self.judged(body["prompt"], body["prompt_logprobs"]))
        if path == "/detokenize" and path in self.beside:
            return 200, {"prompt": tokenizer.decode(body["tokens"])}
        if path == "/tokenize" and path in self.beside:
            ids = tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return 200, {"count": len(ids), "max_model_len": self.limit, "tokens": ids}
        return 404, {"error": "no such path"}

    @torch.no_grad()
    def judged(self, tokens: list[int], top: int) -> dict[str, Any]:
        """As vLLM: the token that was given, and the likeliest ones, as tables by id."""
        logits = self.model.module(torch.tensor([tokens]), use_cache=False).logits[0]
        tables: list[Any] = [None]
        for token, row in zip(tokens[1:], torch.log_softmax(logits.float(), -1)):
            ids = row.argsort(descending=True).tolist()
            kept = ids if top < 0 else ids[:top]
            tables.append({
                str(i): {"logprob": float(row[i]), "rank": ids.index(i) + 1,
                         "decoded_token": self.model.tokenizer.decode([i])}
                for i in dict.fromkeys((*kept, token))
            })  # fmt: skip
        choice = {"index": 0, "text": "", "prompt_logprobs": tables, "prompt_token_ids": tokens}
        usage = {"prompt_tokens": len(tokens), "completion_tokens": 1}
        return {"choices": [choice], "usage": usage}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
