"""A teacher of other tokens than the student's: log-probs summed over the smallest spans of text that both share.

    AlignedTeacher(backend.frozen(teacher), teacher.chat, student.chat)

A row is read piece by piece: the prompt as the teacher would be asked it, then each run of tokens that the student
chose, or that were inserted, as the teacher tokenises its text. Within a run both tokenisations are laid side by side
(`core.alignment`). A token that ends the student's turn is the one that ends the teacher's. What the column says of a
token is its student's log-prob and its share of what the span differs by:

    log pₜ = log q_sₜ + (Σ_span log p − Σ_span log q_s) / n      n tokens of the student in the span, q_s what sampled

so that sums over spans, and over rows, are the teacher's; a span of one token has the teacher's own number. `spans`
says which tokens belong together, for credits that pay them together.

`B` rows, `T` tokens of the student, `U` of the teacher.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maieutic.core.alignment import Span, piece_ends, shared_spans
from maieutic.errors import ConfigError, DataError
from maieutic.protocols import Chat, Scorer
from maieutic.types import Batch, Message


@dataclass(frozen=True, slots=True)
class Reading:
    """A row as the teacher reads it: its tokens, which of them stand for chosen ones, and the spans of both."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    spans: tuple[Span, ...]


class AlignedTeacher:
    """See the top, and `maieutic.protocols.Teacher`. `theirs` is the teacher's chat, `ours` the student's; `limit` how
    many tokens the teacher reads (None: not known).

    A token that the teacher has no text for (a control token within a text) counts as if it had said what the student
    did. Raises DataError, when it is asked, for a row that is longer than the teacher reads.
    """

    def __init__(self, scorer: Scorer, theirs: Chat, ours: Chat, limit: int | None = None) -> None:
        self.scorer, self.theirs, self.ours, self.limit = scorer, theirs, ours, limit
        self._read: dict[tuple[tuple[int, ...], tuple[bool, ...]], Reading] = {}

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats, 0 off the mask; see the top."""
        rows = self._readings(batch)
        said = self.scorer.logprobs(_as_batch(rows, batch.temperature)).to(batch.sampler_logprobs)
        found = torch.zeros_like(batch.sampler_logprobs)
        for row, reading in enumerate(rows):
            for first, stop, their_first, their_stop in reading.spans:
                own = batch.sampler_logprobs[row, first:stop]
                if their_stop > their_first and stop > first:
                    total = said[row, their_first:their_stop].sum()
                    own = total[None] if stop - first == 1 else own + (total - own.sum()) / (stop - first)
                found[row, first:stop] = own
        return found

    def spans(self, batch: Batch) -> Tensor:
        """`[B, T]`: of each chosen token the number of its span within the row, from 1; 0 off the mask."""
        found = torch.zeros_like(batch.tokens)
        for row, reading in enumerate(self._readings(batch)):
            for number, (first, stop, _, _) in enumerate(reading.spans, 1):
                found[row, first:stop] = number
        return found

    def top(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Nothing: its candidates are no tokens of the student's. Raises ConfigError."""
        raise ConfigError(
            f"got {batch.size} rows for a teacher of other tokens, whose candidates are no tokens of the student's; "
            "expected an algorithm that asks for log-probs of what was written (on_policy_distillation)"
        )

    def _readings(self, batch: Batch) -> list[Reading]:
        """Of each row, those of the last batch kept: log-probs and spans are asked one after the other."""
        known, self._read = self._read, {}
        found = []
        for row, length in enumerate(batch.lengths.tolist()):
            key = tuple(batch.tokens[row, :length].tolist()), tuple(batch.mask[row, :length].tolist())
            reading = known.get(key) or self._read.get(key) or self.read(*key)
            if self.limit is not None and len(reading.tokens) > self.limit:
                raise DataError(
                    f"got a row of {len(reading.tokens)} tokens as the teacher reads it; it has {self.limit} "
                    "positions. Lower max_completion_length, or take a teacher with a longer context"
                )
            self._read[key] = reading
            found.append(reading)
        return found

    def read(self, tokens: Sequence[int], mask: Sequence[bool]) -> Reading:
        """A row of the student's as the teacher reads it. Raises DataError where the teacher has no prompt to read."""
        ours_at = 0
        seen: list[int] = []
        chosen: list[bool] = []
        spans: list[Span] = []
        for own, run in itertools.groupby(zip(tokens, mask, strict=True), key=lambda pair: pair[1]):
            piece = tuple(token for token, _ in run)
            new, inside = self._piece(piece) if own else (self._shown(piece, first=not ours_at), [])
            spans += [(ours_at + a, ours_at + b, len(seen) + c, len(seen) + d) for a, b, c, d in inside]
            ours_at += len(piece)
            seen += new
            chosen += [own] * len(new)
        if not seen or chosen[0]:
            raise DataError("got a row whose prompt is no token to the teacher; expected one at least (a BOS token)")
        return Reading(tuple(seen), tuple(chosen), tuple(spans))

    def _shown(self, piece: tuple[int, ...], *, first: bool) -> tuple[int, ...]:
        text = self.ours.decode(piece)
        return self.theirs.prompt((Message("user", text),)) if first else self.theirs.encode(text)

    def _piece(self, piece: tuple[int, ...]) -> tuple[tuple[int, ...], list[Span]]:
        """The teacher's tokens of what the student chose, and the spans within it."""
        ended = piece[-1] in self.ours.stop_ids
        said = piece[:-1] if ended else piece
        text = self.ours.decode(said)
        theirs = self.theirs.encode(text)
        spans = shared_spans(piece_ends(self.ours.decode, said, text), piece_ends(self.theirs.decode, theirs, text))
        if not ended:
            return theirs, spans
        end = self.theirs.completion("")[-1]
        return (*theirs, end), [*spans, (len(said), len(piece), len(theirs), len(theirs) + 1)]


def _as_batch(rows: Sequence[Reading], temperature: float) -> Batch:
    """`[B, U]`, with nothing but what a scorer reads."""
    shape = len(rows), max(len(row.tokens) for row in rows)
    tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[i, : len(row.mask)] = torch.tensor(row.mask)
    zeros, numbers = torch.zeros(shape), torch.arange(len(rows))
    return Batch(
        tokens=tokens, mask=mask, lengths=torch.tensor([len(row.tokens) for row in rows]), sampler_logprobs=zeros,
        rewards=zeros[:, 0], token_rewards=zeros, terminated=torch.ones(len(rows), dtype=torch.bool), groups=numbers,
        units=numbers, temperature=temperature,
    )  # fmt: skip
