"""What runs in the worker process of `maieutic.rewards.latex`: the only module that imports math-verify."""

from __future__ import annotations

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify

# It warns at each call that its own time-outs are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_CONFIG = [LatexExtractionConfig()]

#: `x = 5` states 5. `x^2 = 2` does not state 2, though math-verify takes the right side of any equation.
_NAMES_A_VALUE = re.compile(r"\s*\$*\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?\s*=[^=]*")
_DECIMAL = re.compile(r"\d\.\d|(?<!\d)\.\d")


def _read(text: str) -> list[object]:
    """Parsed forms of an expression; nothing if only a part of it could be made sense of as a string."""
    bare = text.strip().strip("$").removeprefix("\\(").removesuffix("\\)").strip()
    found = parse(f"${bare}$", extraction_config=_CONFIG, fallback_mode="no_fallback", parsing_timeout=None)
    return [form for form in found if not isinstance(form, str)]


def compare(gold: str, given: str) -> str:
    """ "equal", "different" or "unparsable". Decimals are compared to 6 digits, and only if the gold has them."""
    if "=" in given and "=" not in gold and not _NAMES_A_VALUE.fullmatch(given):
        return "different"
    if _DECIMAL.search(given) and not _DECIMAL.search(gold):
        return "different"
    target, answer = _read(gold), _read(given)
    if not target or not answer:
        return "unparsable"
    same = verify(target, answer, float_rounding=6, strict=True, timeout_seconds=None)
    return "equal" if same else "different"
