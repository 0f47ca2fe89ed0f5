"""From padded rows to a flat sequence without padding, and how rows are split into micro-batches.

A row is cut at its first and last chosen token: what precedes is its prompt, which rows with the same prompt share;
what follows is context for nothing. The last chosen token itself is only predicted, never fed.

    `B` rows, `T` columns of the batch · `N` tokens of the flat sequence · `M` predictions (chosen tokens)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maieutic.backends.local.attention import Block, PackedLayout
from maieutic.backends.local.flexible import Flexible
from maieutic.backends.local.segments import Segments, lay_out_segments
from maieutic.errors import DataError
from maieutic.types import Batch

Ints = NDArray[np.int64]

EVEN, FROM = 64, 256
"""From so many tokens on, a sequence in segments is filled up to a multiple, from 1,024 tokens on to one of a 32nd of
their size: a processor's products are compiled for each number of rows that there is, in milliseconds, and results of
ever new sizes leave gaps in memory."""


@dataclass(frozen=True)
class Packed:
    """A flat forward and where its predictions belong.

    `tokens, positions [N]` go in; hidden state `sources [M]` predicts token `targets [M]`, which is entry
    (`rows [M]`, `columns [M]`) of the batch. The last `filling` tokens are nobody's.
    """

    tokens: Tensor
    positions: Tensor
    layout: PackedLayout | Segments | Flexible
    sources: Tensor
    targets: Tensor
    rows: Tensor
    columns: Tensor
    filling: int = 0


@dataclass(frozen=True)
class Piece:
    """Tokens of one prompt, or of one row's completion as far as it is fed: `positions` begin at `offset`."""

    tokens: Ints
    offset: int
    prompt: int
    """The number of the prompt that it is or follows."""


#: Lengths of prompts and of completions, and whose prompt each completion follows → the layout of so many tokens at
#: least, and where each prompt and completion starts.
Arrange = Callable[[Sequence[int], Sequence[int], Sequence[int]], tuple[Flexible, Ints, Ints]]


def pack_tokens(
    row_tokens: Tensor, row_mask: Tensor, *, segments: bool = False, arrange: Arrange | None = None
) -> Packed | None:
    """The flat form of rows `[B, T]`; None when no token was chosen. Raises `DataError` for a row without prompt.

    `segments` asks for the layout `Segments` (see `segments.serves`) instead of blocks, `arrange` for one of its own.
    """
    tokens, mask = row_tokens.cpu().numpy().astype(np.int64), row_mask.cpu().numpy()
    counts = mask.sum(1)
    if not counts.any():
        return None
    if mask[:, 0].any():
        raise DataError("got a row whose first token is marked as chosen; expected at least one prompt token (a BOS)")
    first = mask.argmax(1)
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
    numbers: dict[bytes, int] = {}
    prompts: list[Piece] = []
    completions: list[Piece] = []
    of_row = np.full(len(counts), -1)
    for row in np.flatnonzero(counts):
        prompt = tokens[row, : first[row]]
        number = numbers.setdefault(prompt.tobytes(), len(prompts))
        if number == len(prompts):
            prompts.append(Piece(prompt, 0, number))
        of_row[row] = len(completions)
        completions.append(Piece(tokens[row, first[row] : last[row]], int(first[row]), number))
    filling = filling_of(sum(len(p.tokens) for p in (*prompts, *completions))) if segments else 0
    if filling:
        prompts.append(Piece(np.zeros(filling, np.int64), 0, len(prompts)))
    layout, starts_p, starts_c = _arranged(prompts, completions, lay_out_segments if segments else arrange)
    size = sum(len(p.tokens) for p in (*prompts, *completions))
    beyond = layout.length - size if isinstance(layout, Flexible) else 0
    flat = np.zeros(size + beyond, dtype=np.int64)
    positions = np.zeros_like(flat)
    for pieces, starts in ((prompts, starts_p), (completions, starts_c)):
        for piece, start in zip(pieces, starts, strict=True):
            flat[start : start + len(piece.tokens)] = piece.tokens
            positions[start : start + len(piece.tokens)] = np.arange(len(piece.tokens)) + piece.offset
    rows, columns = np.nonzero(mask)
    own = of_row[rows]
    number = np.array([piece.prompt for piece in completions])[own]
    ends = starts_p + np.array([len(p.tokens) for p in prompts]) - 1
    sources = np.where(columns == first[rows], ends[number], starts_c[own] + columns - 1 - first[rows])
    device = row_tokens.device
    made = (_tensor(x, device) for x in (flat, positions, sources, tokens[rows, columns], rows, columns))
    f, p, s, t, r, c = made
    return Packed(f, p, layout.to(device), s, t, r, c, filling + beyond)


def filling_of(tokens: int) -> int:
    """By how many rows so many are filled up; see `EVEN`."""
    return -tokens % (EVEN if tokens < 16 * EVEN else 1 << (tokens.bit_length() - 6)) if tokens >= FROM else 0


def _arranged(
    prompts: Sequence[Piece],
    completions: Sequence[Piece],
    arrange: Callable[..., tuple[Segments | Flexible, Ints, Ints]] | None,
) -> tuple[PackedLayout | Segments | Flexible, Ints, Ints]:
    if arrange is None:
        return lay_out(prompts, completions)
    of_prompts, of_completions = ([len(piece.tokens) for piece in pieces] for pieces in (prompts, completions))
    return arrange(of_prompts, of_completions, [piece.prompt for piece in completions])


def lay_out(prompts: Sequence[Piece], completions: Sequence[Piece]) -> tuple[PackedLayout, Ints, Ints]:
    """The layout of prompts followed by completions, and where each starts in the flat sequence.

    Pieces of similar length share a block (lengths within a factor of two of one another), so that one long row does
    not make every other one be padded to it.
    """
    starts_p, starts_c = np.zeros(len(prompts), np.int64), np.zeros(len(completions), np.int64)
    blocks: list[Block] = []
    at = 0
    for members in _alike([(len(p.tokens),) for p in prompts]):
        lengths = np.array([len(prompts[i].tokens) for i in members])
        starts_p[members] = at + np.cumsum(lengths) - lengths
        blocks.append(Block(at, at + int(lengths.sum()), len(members), _places(lengths), int(lengths.max())))
        at = blocks[-1].stop
    for members in _alike([(len(c.tokens), c.offset) for c in completions]):
        lengths = np.array([len(completions[i].tokens) for i in members])
        if not lengths.any():
            continue
        starts_c[members] = at + np.cumsum(lengths) - lengths
        heads = np.array([completions[i].offset for i in members])
        context, mask = _context(starts_p[[completions[i].prompt for i in members]], heads, starts_c[members], lengths)
        stop = at + int(lengths.sum())
        blocks.append(Block(at, stop, len(members), _places(lengths), int(lengths.max()), context, mask))
        at = stop
    return PackedLayout(tuple(blocks)), starts_p, starts_c


def _alike(sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Row numbers by size class: the number of binary digits of each size, short ones together."""
    classes: dict[tuple[int, ...], list[int]] = {}
    for number, size in enumerate(sizes):
        classes.setdefault(tuple(max(s, 32).bit_length() if s else 0 for s in size), []).append(number)
    return [classes[key] for key in sorted(classes)]


def _places(lengths: Ints) -> Tensor:
    """Where the tokens of rows so long lie in the rows padded to the longest, flattened."""
    width = int(lengths.max())
    return torch.from_numpy(np.flatnonzero(np.arange(width)[None, :] < lengths[:, None]))


def _context(prompts: Ints, heads: Ints, starts: Ints, lengths: Ints) -> tuple[Tensor, Tensor]:
    """Keys that completions may see: `heads [R]` prompt tokens from `prompts [R]` on, then their own from `starts`.

    Returns flat indices `[R, P + C]` and the mask `[R, 1, C, P + C]`; a place without a token points to token 0 of
    the flat sequence and no one sees it. A padded query sees its row's tokens, so none sees nothing.
    """
    columns, own = np.arange(int(heads.max())), np.arange(int(lengths.max()))
    in_prompt = columns[None, :] < heads[:, None]
    index = np.concatenate(
        [
            np.where(in_prompt, prompts[:, None] + columns, 0),
            np.where(own[None, :] < lengths[:, None], starts[:, None] + own, 0),
        ],
        axis=1,
    )
    causal = torch.from_numpy(own[:, None] >= own[None, :])
    shape = (len(heads), 1, len(own), len(columns))
    seen_prompt = torch.from_numpy(in_prompt)[:, None, None, :].expand(shape)
    return torch.from_numpy(index), torch.cat([seen_prompt, causal.expand(len(heads), 1, -1, -1)], dim=3)


def _tensor(array: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)


def split(batch: Batch, budget: int, ease: int | None = None) -> list[Tensor]:
    """Row numbers of micro-batches of at most `budget` tokens each (more only where one unit alone is larger).

    Rows of one unit, and both rows of a pair, are never separated. Units of one group stay together where they fit,
    because a group's prompt is then computed once. Groups stand together in up to `ease` tokens (None: `budget`).
    Every row is in exactly one micro-batch.
    """
    size = batch.size
    atoms = _atoms(batch)
    lengths, prompts = batch.lengths.tolist(), _prompt_lengths(batch)
    groups = batch.groups.tolist()
    by_group: dict[int, list[list[int]]] = {}
    for atom in atoms:
        by_group.setdefault(groups[atom[0]], []).append(atom)
    cost = [lengths[i] - prompts[i] for i in range(size)]
    made: list[list[int]] = []
    spent = budget + 1
    for members in by_group.values():
        shared = max(prompts[i] for atom in members for i in atom)
        whole = shared + sum(cost[i] for atom in members for i in atom)
        fresh = spent + whole > min(budget, ease or budget)
        for atom in members:
            own = sum(cost[i] for i in atom)
            if fresh or spent + own > budget:
                made.append([])
                spent, fresh = shared, False
            elif atom is members[0]:
                spent += shared
            made[-1].extend(atom)
            spent += own
    return [torch.tensor(sorted(rows), device=batch.tokens.device) for rows in made]


def split_padded(batch: Batch, budget: int) -> list[Tensor]:
    """As `split`, for a forward over padded rows: rows times the longest of them is at most `budget`."""
    lengths = batch.lengths.tolist()
    made: list[list[int]] = []
    for atom in sorted(_atoms(batch), key=lambda atom: max(lengths[i] for i in atom)):
        longest = max(lengths[i] for i in atom)
        if not made or (len(made[-1]) + len(atom)) * longest > budget:
            made.append([])
        made[-1].extend(atom)
    return [torch.tensor(sorted(rows), device=batch.tokens.device) for rows in made]


def _prompt_lengths(batch: Batch) -> list[int]:
    first = torch.where(batch.mask.any(1), batch.mask.to(torch.int8).argmax(1), batch.lengths)
    return [int(x) for x in first.tolist()]


def _atoms(batch: Batch) -> list[list[int]]:
    """Rows that must stay together: those of one unit, and those that a pair ties, in order of their first row."""
    owner: dict[int, int] = {}
    parent = list(range(batch.size))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for row, unit in enumerate(batch.units.tolist()):
        parent[root(row)] = root(owner.setdefault(unit, row))
    if batch.has("pairs"):
        for a, b in batch.pairs.tolist():
            parent[max(root(a), root(b))] = min(root(a), root(b))
    atoms: dict[int, list[int]] = {}
    for row in range(batch.size):
        atoms.setdefault(root(row), []).append(row)
    return list(atoms.values())
