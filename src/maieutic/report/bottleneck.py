"""The bottleneck of a step, in one line with a remedy.

It is the part of the waterfall with the most seconds, among decoding, prefill and the rest of sampling, and every other
phase as a whole. What is said of it follows from which part it is, from how near it runs to the machine's rate of
matrix products, and from the settings (`NEAR` is half of that rate):

    decoding, below NEAR            more rows at a time: num_generations × prompts, or max_rows where these exceed it
    prefill, below NEAR             more siblings a prompt (num_generations), for they share its reading
    update, below NEAR              more tokens at once: micro_batch_tokens, or more rows where all of them fit in one
    any of these, NEAR or above     the arithmetic itself: fewer tokens, or a smaller model
    update, mostly its optimiser    fewer optimiser steps for the same rows
    rest of sampling                more rows at a time, which share it
    sampling without parts          what writes or reads the rows, elsewhere
    reward                          a faster one, or one that waits instead of computing
    annotate                        a loss or credit that does not read the column that takes longest
    checkpoint, validation, store   less often; more rollouts a step
    anything else                   the models are so small that Python is the limit

These are rules of thumb; the numbers are in the line so that a reader may disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maieutic.config import Config, StageConfig
from maieutic.report.waterfall import REST, TITLES, Part, Waterfall

#: Share of the machine's rate from which a part is as fast as can be expected.
NEAR = 0.5


@dataclass(frozen=True, slots=True)
class Longest:
    """The part with the most seconds, and what it is judged by."""

    part: Part
    waterfall: Waterfall
    config: Config
    stage: StageConfig

    def takes(self, what: str) -> str:
        """`Decoding takes 61 % of a step`."""
        return f"{what} takes {percent(self.part.share)} of a step"

    def computes(self, what: str, more: str, less: str) -> str:
        """Of what runs a model: what would bring it nearer to the machine's rate, or what would spare work."""
        share = self.part.share_of_peak
        if share is None:
            return f"{self.takes(what)}: {more} would help"
        said = f"{self.takes(what)} at {percent(share)} of the machine's matrix rate"
        return f"{said}: {more} would help" if share < NEAR else f"{said}, near what it can do: {less} would help"


def bottleneck(found: Waterfall, config: Config, stage: StageConfig) -> str:
    """The line that names it; "" where nothing took any time."""
    sampling = found.of("sampling")
    parts = [part for part in found.of("") if part.path != "sampling" or not sampling] + sampling
    longest = max(parts, key=lambda part: part.seconds, default=None)
    if longest is None:
        return ""
    return RULES.get(longest.path, _plain)(Longest(longest, found, config, stage))


def percent(share: float) -> str:
    """`61 %`."""
    return f"{100 * share:.0f} %"


def _decode(at: Longest) -> str:
    stage, most = at.stage, at.config.max_rows
    rows = f"num_generations × prompts, now {stage.num_generations:,} × {stage.prompts:,}"
    if stage.num_generations * stage.prompts > most:
        rows = f"max_rows, now {most:,}"
    return at.computes("Decoding", f"more rows at a time ({rows})", "shorter completions or a smaller model")


def _prefill(at: Longest) -> str:
    more = f"more siblings a prompt (num_generations, now {at.stage.num_generations:,}), which share its reading,"
    return at.computes("Reading prompts", more, "shorter prompts or a smaller model")


def _update(at: Longest) -> str:
    optimiser = at.waterfall.part("update/optimiser")
    if optimiser is not None and optimiser.seconds > at.part.seconds / 2:
        more = "fewer optimiser steps for the same rows (epochs, minibatches), or more rows in each,"
        return f"{at.takes('Updating')}, most of it in the optimiser: {more} would help"
    at_once = at.config.micro_batch_tokens
    more = f"more rows at a time (prompts, now {at.stage.prompts:,})"
    if (at.part.tokens_per_second or 0.0) * at.part.seconds > at_once:
        more = f"more tokens at once (micro_batch_tokens, now {at_once:,})"
    return at.computes("Updating", more, "fewer passes over the rows or a smaller model")


def _annotate(at: Longest) -> str:
    longest = max(at.waterfall.of(at.part.path), key=lambda each: each.seconds, default=at.part)
    column = longest.path.rpartition("/")[2]
    spare = f": a loss or credit that does not read {column} would spare it" if column in TITLES else ""
    return at.takes("Scoring the rows before the update") + spare


def _reward(at: Longest) -> str:
    hidden = 0.0 if at.waterfall.rewards is None else at.waterfall.rewards[1]
    said = f"{at.takes('Waiting for rewards')}, and {percent(hidden)} of their time is hidden behind sampling"
    return f"{said}: a faster reward, or one that waits instead of computing, would help"


def _sampling_rest(at: Longest) -> str:
    said = at.takes("What sampling does beside running the model (texts, tools, rows)")
    return f"{said}: more rows at a time would share it"


def _sampling(at: Longest) -> str:
    return f"{at.takes('Drawing the rows of a step')}: what writes or reads them is the limit"


def _checkpoint(at: Longest) -> str:
    more = f"a larger checkpoint_every (now {at.stage.checkpoint_every:,})"
    return f"{at.takes('Writing checkpoints')}: {more} would help"


def _validation(at: Longest) -> str:
    now = "" if at.stage.validation is None else f" (now {at.stage.validation.every:,})"
    return f"{at.takes('Validation')}: a larger `every`{now} or a lower `limit` of it would help"


def _store(at: Longest) -> str:
    return f"{at.takes('Writing the database')}: a faster disk, or more rollouts a step, would help"


def _plain(at: Longest) -> str:
    what = "What is outside of every phase" if at.part.path == "other" else f"The phase {at.part.title!r}"
    return f"{at.takes(what)}: the models are so small that Python is the limit"


#: What is said of a part when it is the bottleneck.
RULES: Mapping[str, Callable[[Longest], str]] = {
    "sampling/decode": _decode,
    "sampling/prefill": _prefill,
    f"sampling/{REST}": _sampling_rest,
    "sampling": _sampling,
    "reward": _reward,
    "annotate": _annotate,
    "update": _update,
    "store": _store,
    "checkpoint": _checkpoint,
    "validation": _validation,
}
