"""What a teacher said of fixed sequences, on disk: the likeliest tokens at every chosen position, with their log-probs.

    FOLDER/teacher.json               who spoke, of which vocabulary, at which temperature, how many candidates
    FOLDER/part-00000.safetensors     some sequences; there are as many parts as it took

A part holds `N` sequences with `P` chosen positions in all:

    keys       [N, 16]  uint8     a hash of the sequence's token ids, whole
    ends       [N]      int64     where each sequence's positions end among the P
    places     [P]      int32     which token of its sequence a position is
    chosen     [P]      float32   log-prob of the token that stands there, nats
    ids        [P, K]   int32     the K likeliest tokens, likeliest first
    logprobs   [P, K]   float32   theirs, under the whole distribution (float16 takes half, and is off by up to 0.05 %)

The mass of all other tokens, 1 − Σ exp(logprobs), is implied. K = 20 takes 168 bytes a position, 128 in float16.

A part is written under a temporary name and renamed, so a folder holds whole parts only, whenever it is looked at: who
was stopped goes on with the sequences whose keys are not there yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maieutic.errors import ConfigError, DataError

FORMAT = 1
INDEX = "teacher.json"
KEY_BYTES = 16
NUMBERS: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """A hash of which token has which id: equal for two tokenizers if and only if ids mean the same to both."""
    rows = sorted((number, token) for token, number in vocabulary.items())
    return sha256(json.dumps(rows).encode()).hexdigest()[:32]


def key_of(tokens: Tensor) -> bytes:
    """What a sequence `[T]` (without padding) is found by."""
    return blake2b(tokens.to(torch.int32).numpy().tobytes(), digest_size=KEY_BYTES).digest()


@dataclass(frozen=True)
class Origin:
    """Who spoke: the head of a recording.

    >>> Origin("models/teacher", "9f0c…", tokens=32000, top_k=20)

    `vocabulary` is a `fingerprint`, of `tokens` tokens.
    """

    teacher: str
    vocabulary: str
    tokens: int
    top_k: int
    temperature: float = 1.0
    numbers: str = "float32"


@dataclass(frozen=True)
class Said:
    """Of one sequence: `places [P]`, `chosen [P]`, `ids [P, K]`, `logprobs [P, K]`."""

    places: Tensor
    chosen: Tensor
    ids: Tensor
    logprobs: Tensor


class Records:
    """A folder of them, to read and to add to. Raises DataError for a folder that holds something else."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.origin = _origin(self.folder)
        self._parts: list[Any] = []
        self._where: dict[bytes, tuple[int, int, int]] = {}
        for path in sorted(self.folder.glob("part-*.safetensors")):
            self._open(path)

    @staticmethod
    def begin(folder: str | Path, origin: Origin) -> Records:
        """The folder, made where it is not there. Raises ConfigError where it was begun by another teacher or in
        another way, for a `numbers` that is none, and for less than one candidate."""
        place = Path(folder)
        if origin.numbers not in NUMBERS or origin.top_k < 1:
            raise ConfigError(
                f"got numbers = {origin.numbers!r} and top_k = {origin.top_k}; expected one of {', '.join(NUMBERS)}, "
                "and at least one candidate"
            )
        if (place / INDEX).exists():
            found = Records(place)
            was, now = asdict(found.origin), asdict(origin)
            other = {key: (was[key], now[key]) for key in was if was[key] != now[key]}
            if other:
                told = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in other.items())
                raise ConfigError(f"{place} was begun otherwise: {told}. Give the same to go on, or another folder")
            return found
        if place.exists() and any(place.iterdir()):
            raise ConfigError(f"{place} holds something else; expected a new folder, or one of a recording")
        place.mkdir(parents=True, exist_ok=True)
        _write(place / INDEX, json.dumps({"format": FORMAT, **asdict(origin)}, indent=1).encode())
        return Records(place)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def get(self, key: bytes) -> Said:
        """What was said of the sequence with that key. Raises KeyError for one that is not there."""
        number, start, end = self._where[key]
        part = self._parts[number]
        read = {name: part.get_slice(name)[start:end] for name in ("places", "chosen", "ids", "logprobs")}
        return Said(read["places"].long(), read["chosen"], read["ids"].long(), read["logprobs"].float())

    def add(self, said: Mapping[bytes, Said]) -> None:
        """Write a part; on disk when this returns."""
        if not said:
            return
        each = list(said.values())
        tensors = {
            "keys": torch.tensor([list(key) for key in said], dtype=torch.uint8),
            "ends": torch.tensor([len(one.places) for one in each]).cumsum(0),
            "places": torch.cat([one.places for one in each]).int(),
            "chosen": torch.cat([one.chosen for one in each]).float(),
            "ids": torch.cat([one.ids for one in each]).int(),
            "logprobs": torch.cat([one.logprobs for one in each]).to(NUMBERS[self.origin.numbers]),
        }
        path = self.folder / f"part-{len(self._parts):05d}.safetensors"
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        save_file(tensors, temporary)
        _settle(temporary, path)
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            part = safe_open(path, framework="pt")
            keys, ends = part.get_tensor("keys"), part.get_tensor("ends").tolist()
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and record again what it held") from error
        starts = [0, *ends[:-1]]
        for row, start, end in zip(keys, starts, ends, strict=True):
            self._where[bytes(row.tolist())] = (len(self._parts), start, end)
        self._parts.append(part)


def _origin(folder: Path) -> Origin:
    path = folder / INDEX
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.pop("format") != FORMAT:
            raise ValueError(f"of another format than {FORMAT}")
        return Origin(**told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: expected what a teacher said, as `maieutic teacher record` writes it, and {INDEX} cannot be "
            f"used ({error})"
        ) from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_bytes(content)
    _settle(temporary, path)


def _settle(temporary: Path, path: Path) -> None:
    """Onto the disk, then under its name."""
    for place in (temporary, path.parent):
        if place == path.parent:
            os.replace(temporary, path)
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
