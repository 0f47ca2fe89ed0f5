"""What the phases of a step have to do, counted: operations of matrix products, bytes that are moved, calls.

    prefill   every prompt once, keeping keys and values
    decode    a token for each row that is being written, again and again
    scoring   a forward pass over prompts and completions (old log-probs, a reference, a teacher, values)
    update    forward, backward, optimiser

    seconds = max(operations of products / rate, bytes of weights / bandwidth)
            + max(operations of attention / rate, bytes of keys and values / bandwidth)
            + bytes moved between products / bandwidth + calls · seconds of a call

A rate is that of a product with so many rows (`Machine.rate`): with few of them the weights are read faster than they
are used, and memory is the limit. What has to be done is counted, and what is done takes longer: `predict.EFFICIENCY`.

    `E, Q, K, F, V` as in `sizes`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from maieutic.forecast.memory import MUON
from maieutic.forecast.sizes import Sizes

#: A layer's forward pass takes as long, where there is next to nothing to compute, as so many of the smallest
#: operations; what is done once for all layers (to draw a token, to note it) as so many more; a backward pass follows
#: with so many times as many.
CALLS_OF_LAYER, CALLS_OF_PASS, BACKWARD_CALLS = 400.0, 900.0, 1.5

#: The same of a step of decoding whose small operations are compiled (`fused`).
CALLS_OF_FUSED_LAYER, CALLS_OF_FUSED_PASS = 120.0, 450.0

#: The same of a micro-batch that is scored or learned from by what is not compiled: it is packed first, and attention
#: goes from prompt to prompt.
CALLS_OF_PACKED_LAYER, CALLS_OF_PACKED_PASS = 1200.0, 2500.0

#: How often a number that passes between products is written or read before the next product.
TOUCHED = 6.0

#: How often each logit is written or read while a token is drawn, or scored.
LOGIT_TOUCHED = 8.0

#: Bytes that AdamW reads and writes of each trained number: weight, gradient and two moments, three of them twice; the
#: gradient is also measured for clipping.
ADAMW_BYTES = 4 * 8

#: Sides of the product whose rate is taken for attention: the usual size of a head.
SIDE = 64

#: To arrange a weight takes as long as so many copies of it.
LAYING = 16.0

#: Newton-Schulz of Muon: five rounds, in bfloat16.
ROUNDS = 5


class Machine(Protocol):
    """What a machine can do. `measure.Measured` measures it; `Known` says it."""

    def rate(self, rows: int, inner: int, outer: int) -> float:
        """Floating-point operations a second of a product `[rows, inner] @ [inner, outer]`."""
        ...

    def coarse_rate(self, rows: int, inner: int, outer: int) -> float:
        """The same in bfloat16."""
        ...

    def bandwidth(self) -> float:
        """Bytes a second between memory and processor."""
        ...

    def call(self) -> float:
        """Seconds of the smallest operation."""
        ...


@dataclass(frozen=True)
class Known:
    """A machine of which everything is said, for tests and machines that are not here: `Known(5e10, 1e10, 2e-6)`."""

    operations: float
    bytes: float
    seconds: float

    def rate(self, rows: int, inner: int, outer: int) -> float:  # noqa: ARG002 - the same for all
        """See `Machine`."""
        return self.operations

    def coarse_rate(self, rows: int, inner: int, outer: int) -> float:  # noqa: ARG002
        """See `Machine`."""
        return self.operations

    def bandwidth(self) -> float:
        """See `Machine`."""
        return self.bytes

    def call(self) -> float:
        """See `Machine`."""
        return self.seconds


#: What `Work` adds up beside operations of products.
NUMBERS = ("attention", "weights", "keys", "moved", "calls")


@dataclass(frozen=True)
class Work:
    """What a phase does: `products` are operations by the shape of the weight, done for `rows` rows at once.

    attention   operations of scores and of the mean of values
    weights     bytes of weights that have to come from memory
    keys        bytes of keys and values that have to
    moved       bytes that are written and read between products
    calls       of the smallest size
    coarse      operations in bfloat16 by shape (Muon's)
    """

    products: Mapping[tuple[int, int], float]
    rows: int
    attention: float = 0.0
    weights: float = 0.0
    keys: float = 0.0
    moved: float = 0.0
    calls: float = 0.0
    coarse: Mapping[tuple[int, int, int], float] | None = None

    @property
    def operations(self) -> float:
        """All of them."""
        return sum(self.products.values()) + self.attention + sum((self.coarse or {}).values())

    def times(self, factor: float) -> Work:
        """So many times as much, as many rows at once."""

        numbers = {name: factor * getattr(self, name) for name in NUMBERS}
        products = {shape: factor * value for shape, value in self.products.items()}
        return Work(products, self.rows, **numbers, coarse={k: factor * v for k, v in (self.coarse or {}).items()})

    def seconds(self, machine: Machine) -> float:
        """How long it takes where nothing else is done."""
        computing = sum(value / machine.rate(self.rows, *shape) for shape, value in self.products.items())
        computing += sum(value / machine.coarse_rate(*shape) for shape, value in (self.coarse or {}).items())
        attending = self.attention / machine.rate(self.rows, SIDE, SIDE) if self.attention else 0.0
        each = 1.0 / machine.bandwidth()
        through = max(computing, each * self.weights) + max(attending, each * self.keys)
        return through + each * self.moved + self.calls * machine.call()


def together(parts: Sequence[Work]) -> Work:
    """One after another. Rows at once are those of the part with most operations. Raises ValueError for no part."""
    if not parts:
        raise ValueError("together: got no work; expected at least one part")
    products, coarse = Counter[tuple[int, int]](), Counter[tuple[int, int, int]]()
    for part in parts:
        products.update(part.products)
        coarse.update(part.coarse or {})
    sums = {name: sum(getattr(part, name) for part in parts) for name in NUMBERS}
    return Work(dict(products), max(parts, key=lambda part: part.operations).rows, **sums, coarse=dict(coarse))


def seen(start: int, stop: int) -> int:
    """Keys that tokens at positions `start … stop - 1` attend to, each itself and all before it.

    >>> seen(2, 4)      # 3 + 4
    7
    """
    return (stop * (stop + 1) - start * (start + 1)) // 2


def forward(sizes: Sizes, tokens: float, keys: float, predictions: float, passes: float, *, fed: float = 0.0) -> Work:
    """`tokens` through the layers in so many passes, attending to `keys` in all; `predictions` through the head.

    `fed`: keys that have to be read one row after another, as when decoding.
    """
    products = Counter[tuple[int, int]]()
    for product in sizes.products:
        products[product.inner, product.outer] += 2 * product.weights * tokens  # type: ignore[assignment]
    products[sizes.width, sizes.vocabulary] += 2 * sizes.head.weights * predictions  # type: ignore[assignment]
    weights = sizes.item * (sum(p.weights for p in sizes.products) + sizes.head.weights)
    between = sizes.normed + sizes.layers * (2 * sizes.width + 3 * sizes.mlp + 3 * sizes.queries + 2 * sizes.keys)
    return Work(
        products=dict(products),
        rows=max(1, round(tokens / max(1.0, passes))),
        attention=4.0 * sizes.layers * sizes.queries * keys,
        weights=passes * weights,
        keys=sizes.item * 2 * sizes.layers * sizes.keys * fed,
        moved=TOUCHED * sizes.item * between * tokens + LOGIT_TOUCHED * 4 * sizes.vocabulary * predictions,
        calls=passes * (CALLS_OF_LAYER * sizes.layers + CALLS_OF_PASS),
    )


def scoring(sizes: Sizes, tokens: float, keys: float, predictions: float, passes: float) -> Work:
    """`forward` over micro-batches of prompts and completions."""
    run = forward(sizes, tokens, keys, predictions, passes)
    if sizes.compiled:
        return run
    return replace(run, calls=passes * (CALLS_OF_PACKED_LAYER * sizes.layers + CALLS_OF_PACKED_PASS))


def prefill(sizes: Sizes, groups: int, prompt: float, laid_out: int = 0) -> Work:
    """Every prompt once, with one prediction each; and so many bytes of weights are arranged for decoding."""
    run = forward(sizes, groups * prompt, groups * seen(0, round(prompt)), groups, 1.0)
    return replace(run, moved=run.moved + LAYING * laid_out)


def decode(sizes: Sizes, rows: int, at_once: int, prompt: float, mean: float, longest: float) -> Work:
    """Completions of `mean` tokens on average, the longest of them `longest`, `at_once` rows at a time.

    The first token of each comes of the prompt. Rows that end make room for others, so there are as many steps as
    rows times tokens fill, and at least as many as the longest has.
    """
    tokens = rows * max(0.0, mean - 1)
    steps = max(tokens / at_once, max(0.0, longest - 1))
    keys = rows * seen(round(prompt), round(prompt + max(0.0, mean - 1)))
    run = forward(sizes, tokens, keys, tokens, steps, fed=keys)
    if not sizes.compiled:
        return run
    return replace(run, calls=steps * (CALLS_OF_FUSED_LAYER * sizes.layers + CALLS_OF_FUSED_PASS))


def reread(sizes: Sizes, rows: int, prompt: float, completion: float, turns: int, laid_out: int = 0) -> Work:
    """Before each of their turns, every row by itself: the prompt and all that was said so far, which grows evenly."""
    begun = [prompt + turn * completion / turns for turn in range(turns)]
    run = forward(sizes, rows * sum(begun), rows * sum(seen(0, round(each)) for each in begun), rows * turns, turns)
    return replace(run, moved=run.moved + LAYING * laid_out * turns)


def read_once(sizes: Sizes, groups: int, siblings: int, prompt: float, mean: float) -> tuple[float, float, float]:
    """Tokens, keys and predictions of prompts and completions in one pass: prompts once for a group where the fast
    engine serves, else once for each row, of which the model then predicts every token."""
    rows, fed = groups * siblings, max(0.0, mean - 1)
    of_completions = rows * seen(round(prompt), round(prompt + fed))
    prompts = groups if sizes.plugged else rows
    tokens = prompts * prompt + rows * fed
    return tokens, prompts * seen(0, round(prompt)) + of_completions, rows * mean if sizes.plugged else tokens


def backward(sizes: Sizes, run: Work) -> Work:
    """Gradients of what went in, and of the trained weights: as much as forwards for each."""
    trained = Counter[tuple[int, int]]()
    whole = Counter[tuple[int, int]]()
    for product in (*sizes.products, sizes.head):
        shape = (product.inner, product.outer)
        whole[shape] += product.weights
        trained[shape] += product.weights if product.trained else 0
    return Work(
        {shape: value * (1 + trained[shape] / whole[shape]) for shape, value in run.products.items()},
        run.rows,
        2.0 * run.attention,
        2.0 * run.weights,
        2.0 * run.keys,
        2.0 * run.moved,
        BACKWARD_CALLS * run.calls,
    )


def optimiser_step(sizes: Sizes, kind: str) -> Work:
    """AdamW passes over memory; Muon multiplies: each round X ← a X + (b A + c A A) X with A = X Xᵀ."""
    coarse = Counter[tuple[int, int, int]]()
    trained = [w for w in sizes.weights if w.trained]
    for weight in (w for w in trained if w.hidden and MUON[kind]):
        short, long = sorted(weight.shape)
        coarse[short, long, short] += ROUNDS * 4 * short * short * long
        coarse[short, short, short] += ROUNDS * 2 * short**3
    return Work({}, 1, moved=float(ADAMW_BYTES * sum(w.numbers for w in trained)), calls=float(len(trained)),
                coarse=dict(coarse))  # fmt: skip
