"""What training takes of memory, by formulas from a model's sizes and from lengths. Bytes everywhere.

weights       4 for each number in float32, trained or frozen
gradients     as much as the trained weights, while an update goes on
optimiser     AdamW: two moments, 8 for each trained number; Muon: one, 4 for each number of its matrices
activations   what the forward pass keeps for the backward pass, see `activations`
logits        those that are held for the backward pass, and what is there beside them, see `logits`
laid out      weights that a CPU keeps once more, arranged for products, while it writes and while it learns

`N` tokens that are fed · `M` predictions · `R` rows, which see `C` keys in all: prompts once for each row ·
`E, Q, K, F, V` as in `sizes`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from maieutic.backends.local.evaluate import CHUNK, EASE, HELD, PIECE, ROWS
from maieutic.backends.local.lean import LAID_OUT, MANY
from maieutic.backends.local.packing import filling_of
from maieutic.backends.local.products import KEPT
from maieutic.backends.local.scoring import PIECE as SCORED
from maieutic.forecast.sizes import Sizes, Weight

#: What the optimiser keeps beside moments: AdamW counts its steps for each tensor, in four bytes.
COUNTER = 4

#: Tensors of the size of the sampler's logits: it draws by cumulated probabilities of scaled ones.
DRAWN_AT_ONCE = 3

#: Bytes of a number from which on a CPU attends to tokens where they lie, see `segments.serves`.
WIDE = 4

#: Scores that are kept where attention writes them out, each in so many forms.
WRITTEN_OUT = 2

#: Numbers of a layer's hidden states that are there at once in a forward pass that keeps nothing, in widths: the
#: residual stream, its norm, and what comes out.
PASSING = 4

#: What a norm and a unit of a gated feed-forward layer keep where a trunk goes through memory in few passes
#: (`passes`): what goes in, and what the next product takes.
FEW_OF_NORM, FEW_OF_UNIT = 2, 3

#: Bytes of Numba and of the kernels that it loads.
KERNELS = 130 << 20

#: Bytes that Python keeps of a token of a rollout (its id, its mark, its log-prob), and of a batch (`Batch`, padded).
ROLLOUT_TOKEN, BATCH_TOKEN = 76, 40


@dataclass(frozen=True, slots=True)
class Item:
    """Something that takes memory: `Item("activations", 10**9, key="micro_batch_tokens")`.

    `key` is the setting that makes it smaller, where there is one.
    """

    what: str
    bytes: int
    key: str = ""


@dataclass(frozen=True)
class Memory:
    """What is there all the time, and what a phase needs beside it."""

    standing: tuple[Item, ...]
    phases: dict[str, tuple[Item, ...]] = field(default_factory=dict)

    def peak(self, phase: str) -> int:
        """Bytes while that phase goes on."""
        return sum(item.bytes for item in (*self.standing, *self.phases[phase]))

    @property
    def highest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.peak)


@dataclass(frozen=True, slots=True)
class Pass:
    """What a micro-batch sends through the model.

    >>> Pass(tokens=64, rows=4, predictions=40, context=96, masked=864)      # see `micro_batch`

    `context`: keys that are gathered for the rows, their prompts and themselves. `masked`: queries times keys, of which
    a mask says who sees whom. Both are 0 where attention takes tokens where they lie (`segments`, on a
    CPU). `heads`: logits are made of every token, not of predictions only.
    """

    tokens: int
    rows: int
    predictions: int
    context: int = 0
    masked: int = 0
    heads: bool = False

    @property
    def gathered(self) -> bool:
        """Whether attention works on copies of keys and values."""
        return self.context > 0


def gradients(weights: Iterable[Weight]) -> int:
    """One for each trained number, in its own precision."""
    return sum(weight.bytes for weight in weights if weight.trained)


def optimiser_state(weights: Iterable[Weight], kind: str) -> int:
    """After the first step. `kind` is "adamw", or "muon": hidden matrices by Muon, the rest by AdamW."""
    total = 0
    for weight in (w for w in weights if w.trained):
        by_muon = weight.hidden and MUON[kind]
        total += weight.bytes if by_muon else 2 * weight.bytes + COUNTER
    return total


#: Whether an optimiser of that kind takes the hidden matrices by Muon.
MUON = {"adamw": False, "muon": True}


def orthogonalising(weights: Iterable[Weight], kind: str) -> int:
    """What Muon needs while it steps: Newton-Schulz keeps some four bfloat16 matrices of the shape of the largest."""
    matrices = [w.numbers for w in weights if w.trained and w.hidden and MUON[kind]]
    return 4 * 2 * max(matrices, default=0)


def rows_at_once(budget: int, prompt: int, completion: int, siblings: int, ease: int | None = None) -> tuple[int, int]:
    """How many prompts and rows of each a micro-batch has: `packing.split` on groups that are all alike.

    Whole groups where they fit, several in up to `ease` tokens (None: the budget); else as many rows of one group as
    fit, at least one.

    >>> rows_at_once(1000, 40, 60, 4)      # a group is 40 + 4 * 60 = 280 tokens: three whole groups
    (3, 4)
    >>> rows_at_once(200, 40, 60, 4)       # (200 - 40) // 60 = 2 rows of one group
    (1, 2)
    """
    whole = prompt + siblings * completion
    if whole <= budget:
        return max(1, min(budget, ease or budget) // whole), siblings
    return 1, min(siblings, max(1, (budget - prompt) // max(1, completion)))


def micro_batch(
    sizes: Sizes, budget: int, groups: int, prompt: int, completion: int, siblings: int, *, on_cpu: bool = True
) -> Pass:
    """The largest micro-batch of a step of `groups` groups that are all alike. The last token is never fed.

    Without the fast engine rows are padded and whole, and a large vocabulary lowers the budget (`PaddedForward`).
    """
    if not sizes.plugged:
        budget = min(budget, max(512, 2 * HELD // sizes.vocabulary))
        length = prompt + completion
        rows = min(groups * siblings, max(1, budget // length))
        return Pass(rows * length, rows, rows * completion, heads=True)
    prompts, each = rows_at_once(budget, prompt, completion, siblings, EASE if on_cpu else None)
    prompts = min(prompts, groups)
    rows, fed = prompts * each, completion - 1
    run = Pass(prompts * prompt + rows * fed, rows, rows * completion)
    if on_cpu and sizes.item >= WIDE:
        return replace(run, tokens=run.tokens + filling_of(run.tokens))
    return replace(run, context=rows * (prompt + fed), masked=rows * fed * (prompt + fed))


def activations(sizes: Sizes, run: Pass) -> int:
    """Kept for the backward pass, of all layers:

        N · (norms + layers · (q F + 2 Q + 2 K + heads) + ranks) + M · E             on a CPU
        + N · layers · Q + layers · (2 K · C + masked)                               elsewhere

    A norm keeps two or three numbers for each that it is taken of (`Sizes.norm_kept`), a feed-forward layer four or
    five for each unit (`few`: two, and three), attention its queries, keys, values, its result, and a number a head; an
    adapter what its first matrix makes. The last states are kept once more where a token is predicted from them.

    Where keys and values are gathered, they are kept once more for each row of a group, which sees the group's prompt,
    the mask is kept as numbers, and the result once more as the next product takes it. Attention that writes its
    scores out keeps those, too.
    """
    norm, unit = (FEW_OF_NORM, FEW_OF_UNIT) if few(sizes, run) else (sizes.norm_kept, sizes.mlp_kept)
    token = norm * sizes.normed + _ranks(sizes)
    token += sizes.layers * (unit * sizes.mlp + 2 * sizes.queries + 2 * sizes.keys + sizes.heads)
    token += sizes.layers * sizes.queries if run.gathered or run.heads else 0
    token += WRITTEN_OUT * sizes.layers * sizes.heads * (run.tokens // run.rows) if sizes.eager else 0
    seen = sizes.layers * (2 * sizes.keys * run.context + run.masked)
    return sizes.item * (run.tokens * token + seen + run.predictions * sizes.width)


def differentiating(sizes: Sizes, run: Pass) -> int:
    """What a backward pass has at once beside what was kept: gradients of one layer's states."""
    return sizes.item * run.tokens * (2 * sizes.width + 3 * sizes.mlp + 2 * sizes.queries + 2 * sizes.keys)


def _ranks(sizes: Sizes) -> int:
    """Numbers between the two matrices of every adapter: of products that are trained and lead to few numbers."""
    adapters = [p for p in sizes.products if p.trained and p.outer < min(sizes.width, sizes.keys)]
    return sum(p.outer * p.times for p in adapters) if any(not p.trained for p in sizes.products) else 0


def few(sizes: Sizes, run: Pass) -> bool:
    """Whether a micro-batch is large enough for few passes over memory, and for weights that are laid out, on a CPU."""
    return sizes.lean and not run.gathered and run.tokens >= MANY


def logits(sizes: Sizes, run: Pass) -> tuple[int, int]:
    """Bytes of the logits that are kept for the backward pass, and of what is there beside them at the peak.

    Up to `evaluate.HELD` of them are kept; more are made once more, piece by piece, in the backward pass. Compiled
    scores have the gradient in their place (`scoring`); else there is that of a piece. Without the fast engine the
    model makes them of every token, and they have a gradient.
    """
    count = run.predictions * sizes.vocabulary
    if sizes.compiled and not run.gathered:
        made = sizes.item * (run.predictions + filling_of(run.predictions)) * sizes.vocabulary
        return (made, 0) if count <= HELD else (0, sizes.item * _scored(sizes.vocabulary))
    whole = 2 * run.tokens * sizes.vocabulary * sizes.item if run.heads else 0
    if count <= HELD:
        return sizes.item * count, sizes.item * min(count, _piece(sizes.vocabulary, PIECE)) + whole
    return 0, 2 * sizes.item * _piece(sizes.vocabulary, CHUNK) + whole


def _piece(vocabulary: int, wanted: int) -> int:
    """Logits that are made at once: see `evaluate._in_chunks`."""
    return max(1, min(HELD, max(wanted, ROWS * vocabulary)) // vocabulary) * vocabulary


def _scored(vocabulary: int) -> int:
    """The same where they are scored by compiled kernels, see `scoring`."""
    return max(MANY, SCORED // vocabulary) * vocabulary


def passing(sizes: Sizes, run: Pass) -> int:
    """What a forward pass has at once that keeps nothing: one layer's states, and a chunk of logits."""
    layer = PASSING * sizes.width + max(3 * sizes.mlp, 3 * sizes.queries + 2 * sizes.keys)
    compiled = sizes.compiled and not run.gathered
    piece = _scored(sizes.vocabulary) if compiled else _piece(sizes.vocabulary, CHUNK)
    scored = sizes.item * min(run.predictions * sizes.vocabulary, piece)
    whole = run.tokens * sizes.vocabulary * sizes.item if run.heads else 0
    return sizes.item * (run.tokens * layer + 2 * sizes.keys * run.context + run.masked) + max(scored, whole)


def laid_out(sizes: Sizes) -> int:
    """Weights that the sampler keeps once more while it writes on a CPU, arranged for the products of few rows."""
    size = sizes.item * (sum(product.weights for product in sizes.products) + sizes.head.weights)
    return size if sizes.lean and size <= LAID_OUT else 0


def laid_out_to_learn(sizes: Sizes, run: Pass) -> int:
    """Weights that an update keeps once more on a CPU, each as it is used forth and as it is used back, up to
    `products.KEPT`; the head's where scores are compiled."""
    if not few(sizes, run):
        return 0
    head = sizes.head.weights if sizes.compiled and run.predictions >= MANY else 0
    return min(KEPT, 2 * sizes.item * (sum(product.weights for product in sizes.products) + head))


def drawing(sizes: Sizes, rows: int) -> int:
    """Logits of the rows that are written together, and what drawing from them takes."""
    return DRAWN_AT_ONCE * 4 * rows * sizes.vocabulary


def rollouts(rows: int, length: int) -> int:
    """A step's rollouts of so many tokens as Python keeps them, and its batch."""
    return rows * length * (ROLLOUT_TOKEN + BATCH_TOKEN)
