"""Scores by padded forwards of rows of similar length: of every architecture, decoders and encoders alike.

Rows are run longest first, as many at once as their tokens allow, padded to the longest of them.

    `R` rows · `M` states that are read · `E` width of a hidden state
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from maieutic.models.classifiers import body_of

Tokens = Sequence[int]
Columns = Sequence[Sequence[int]]
#: (rows, where their prompts end, columns to read: a score is of the tokens before its column) → scores, a row each.
Engine = Callable[[Sequence[Tokens], Sequence[int], Columns], list[list[float]]]

#: Tokens in one forward, padding included (more only where one row alone has more).
BUDGET = 8192


def padded(module: nn.Module, head: nn.Module | None) -> Engine:
    """An engine over a causal model and the head that reads its states, or over a whole classifier (no head)."""
    engine = _classified(module) if head is None else _read(module, head)

    def run(rows: Sequence[Tokens], starts: Sequence[int], columns: Columns) -> list[list[float]]:
        if head is None:  # a classifier of whole texts is asked of each prefix by itself
            cut = [(row[:column], start) for row, start, at in zip(rows, starts, columns) for column in at]
            flat = iter(_in_parts(engine, [row for row, _ in cut], [start for _, start in cut], [[0]] * len(cut)))
            return [[next(flat)[0] for _ in at] for at in columns]
        return _in_parts(engine, rows, starts, columns)

    return run


def _in_parts(engine: Engine, rows: Sequence[Tokens], starts: Sequence[int], columns: Columns) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in rows]
    order = sorted((i for i in range(len(rows)) if columns[i]), key=lambda i: -len(rows[i]))
    while order:
        count = max(1, BUDGET // len(rows[order[0]]))
        part, order = order[:count], order[count:]
        scores = engine([rows[i] for i in part], [starts[i] for i in part], [columns[i] for i in part])
        for i, of_row in zip(part, scores, strict=True):
            found[i] = of_row
    return found


def _read(module: nn.Module, head: nn.Module) -> Engine:
    body: Any = body_of(module)

    @torch.no_grad()
    def run(rows: Sequence[Tokens], starts: Sequence[int], columns: Columns) -> list[list[float]]:  # noqa: ARG001
        tokens, seen = _tensors(rows, module)
        states = body(input_ids=tokens, attention_mask=seen, use_cache=False).last_hidden_state
        places = torch.tensor([(i, column - 1) for i, at in enumerate(columns) for column in at], device=tokens.device)
        flat = iter(head(states[places[:, 0], places[:, 1]]).flatten().tolist())
        return [[next(flat) for _ in at] for at in columns]

    return run


def _classified(module: nn.Module) -> Engine:
    whole: Any = module
    two_texts = getattr(whole.config, "type_vocab_size", 0) > 1

    @torch.no_grad()
    def run(rows: Sequence[Tokens], starts: Sequence[int], columns: Columns) -> list[list[float]]:  # noqa: ARG001
        tokens, seen = _tensors(rows, module)
        second = torch.arange(tokens.shape[1])[None] >= torch.tensor(starts)[:, None]
        kinds = {"token_type_ids": second.to(seen) * seen} if two_texts else {}
        logits = whole(input_ids=tokens, attention_mask=seen, **kinds).logits.float()
        one = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return [[value] for value in one.tolist()]

    return run


def _tensors(rows: Sequence[Tokens], module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and 1 where there are any, `[R, T]` each; padding holds token 0, and no state of it is read."""
    device = next(module.parameters()).device
    width = max(len(row) for row in rows)
    tokens, seen = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        seen[i, : len(row)] = 1
    return tokens.to(device), seen.to(device)
