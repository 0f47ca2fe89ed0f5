"""On a GPU: is it right, and how near to its limits are decoding and updates; a whole step beside TRL's.

    python -m benchmarks gpu [--check] [--sizes 0.5B 1.5B 7B] [--rows 1 8 32 64 128 256] [--only decode update step]
                             [--quick] [--json FILE] [--seconds 540] [--case-seconds 200] [--trl-python PYTHON]

First the checks (`--check`: those alone), each printed as PASS or FAIL with its figure: replayed against plain steps,
sampler against learner, packed against padded log-probs and gradients, bfloat16 against float32, resume. Then, of
random models in the shapes of Qwen2.5:

    decode   tokens a second at so many rows, prompts of 256 tokens and completions of 256, eight to a prompt. `of
             bandwidth`: weights (bfloat16) once a step and every key and value that is seen, at the measured rate of a
             large copy, as a share of the time of decoding
    update   an optimiser step of GRPO on 64 rows of 128 to 512 tokens behind prompts of 256. `of peak`: the operations
             that have to be done, at the measured rate of a large bfloat16 product, as a share of the time. Weights
             are float32 with AdamW; the 7B shape would need 18 bytes for each of 7.6e9 weights beside its activations,
             so a LoRA is trained there, with gradient checkpointing
    step     rollouts to update, 8 x 8 completions of 256 tokens of the 0.5B shape, beside TRL's GRPOTrainer without a
             server where `--trl-python` (default: this Python) has trl; else ours alone, and that is said

Every case is a process of its own with a limit of time; what fails, or has no time left of `--seconds`, is said and the
others run. The JSON is written after every case. Without a CUDA device there is nothing to do: one line, exit 0.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._results import write_json
from benchmarks._shapes import LARGE, SIZES
from benchmarks.step import MICRO, PEER, ROOT

Found = dict[str, Any]

ROWS, FEW_ROWS = (1, 8, 32, 64, 128, 256), (1, 64)
KINDS = ("decode", "update", "step")

#: Rows, tokens of prompt and completion of an update and of a step.
UPDATE = {"rows": 64, "prompt": 256, "completion": 512}
STEP = {"prompts": 8, "generations": 8, "prompt": 128, "completion": 256, "steps": 3}

#: Seconds that a case needs at least: starting Python, loading torch, making a model.
LEAST = 25.0


@dataclass(frozen=True)
class Case:
    """Something to run: `python -m MODULE ARGUMENTS` (with `python`: another program of another Python)."""

    name: str
    command: Sequence[str]
    seconds: float
    about: Mapping[str, Any] = field(default_factory=dict)


def run(case: Case, seconds: float) -> tuple[list[Found], str]:
    """The JSON lines that a case printed, and what went wrong (empty: nothing); ended when its time is over.

    Lines are read as they come, so what was known before a failure is kept.
    """
    lines: list[Found] = []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        list(case.command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        start_new_session=True,
    )  # fmt: skip
    said: list[str] = []
    readers = [threading.Thread(target=_read, args=(process.stdout, lines), daemon=True),
               threading.Thread(target=_pass_on, args=(process.stderr, said), daemon=True)]  # fmt: skip
    for reader in readers:
        reader.start()
    why = ""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        why = f"not done within {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for reader in readers:
        reader.join(5)
    if not why and process.returncode:
        why = f"ended with {process.returncode}: {''.join(said[-3:]).strip()[-500:]}"
    return lines, why


def _read(stream: Any, lines: list[Found]) -> None:
    for line in stream:
        if line.startswith("{"):
            lines.append(json.loads(line))


def _pass_on(stream: Any, said: list[str]) -> None:
    for line in stream:
        said.append(line)
        del said[:-40]
        sys.stderr.write(line)


def cases(given: argparse.Namespace, limits: Found) -> Iterator[Case]:
    """What was asked for, the smaller sizes first: they are over soon."""
    known = ["--bandwidth", str(limits.get("bandwidth", 1.0)), "--peak", str(limits.get("peak", 1.0))]
    common = ["--device", given.device, *known, *(["--quick"] if given.quick else [])]
    for size in given.sizes:
        if "decode" in given.only:
            about = {"kind": "decode", "size": size}
            arguments = ["decode", "--size", size, "--rows", *map(str, given.rows), *_lengths(given, 256, 256)]
            yield Case(f"decode, {size}", _program("_gpu_cases", *arguments, *common), given.case_seconds, about)
        if "update" in given.only:
            about = {"kind": "update", "size": size}
            rows = str(UPDATE["rows"] // 2 if given.quick else UPDATE["rows"])
            arguments = ["update", "--size", size, "--rows", rows]
            arguments += _lengths(given, UPDATE["prompt"], UPDATE["completion"])
            yield Case(f"update, {size}", _program("_gpu_cases", *arguments, *common), given.case_seconds, about)


def _lengths(given: argparse.Namespace, prompt: int, completion: int) -> list[str]:
    if given.tokens is not None:
        prompt, completion = given.tokens, given.tokens
    elif given.quick:
        completion //= 2
    return ["--prompt", str(prompt), "--completion", str(completion)]


def _program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


@dataclass
class Session:
    """What was found so far, within a limit of time and in a file."""

    given: argparse.Namespace
    found: Found
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds."""
        return self.given.seconds - (time.monotonic() - self.start)

    def run(self, case: Case) -> list[Found]:
        """Run a case in the time that is left, note what failed, and write the file."""
        seconds = min(case.seconds, self.left())
        if seconds < LEAST:
            self.miss(case.name, "no time left of --seconds")
            return []
        print(f"gpu: {case.name} (at most {seconds:.0f} s)", file=sys.stderr)
        begun = time.monotonic()
        lines, why = run(case, seconds)
        print(f"gpu: {case.name}: {time.monotonic() - begun:.0f} s{', ' + why if why else ''}", file=sys.stderr)
        if why:
            self.miss(case.name, why)
        return lines

    def miss(self, name: str, why: str) -> None:
        """Note what was not measured."""
        print(f"gpu: {name}: left out: {why}", file=sys.stderr)
        self.found["left_out"].append({"case": name, "why": why})
        self.write()

    def write(self) -> None:
        """Everything so far."""
        if self.given.json:
            write_json(self.given.json, self.found)


def measure(given: argparse.Namespace) -> Found:
    """Everything that was asked for."""
    session = Session(
        given, {"device": given.device, "limits": {}, "checks": [], "points": [], "step": {}, "left_out": []}
    )
    found = session.found
    size = ["--size", given.check_size]
    checks = Case("checks", _program("_gpu_checks", "--device", given.device, *size), 1.5 * given.case_seconds)
    found["checks"] = session.run(checks)
    for check in found["checks"]:
        print(told(check), flush=True)
    session.write()
    if given.check:
        return found
    seconds = "0.1" if given.device == "cpu" else "1"
    limits = Case("limits", _program("_gpu_cases", "limits", "--device", given.device, "--seconds", seconds), 90.0)
    found["limits"] = dict(*session.run(limits)[:1])
    for case in cases(given, found["limits"]):
        for line in session.run(case):
            found["points"].append({**case.about, **line})
            session.write()
    if "step" in given.only:
        found["step"] = step(session)
    session.write()
    return found


def step(session: Session) -> Found:
    """Whole steps of ours, and of TRL's where it is there."""
    given = session.given
    size = "tiny" if given.device == "cpu" else "0.5B"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = ["--size", size, "--prompt", str(STEP["prompt"]), "--out", str(folder), "--device", given.device]
        if not session.run(Case("a model for the step", _program("_gpu_cases", "model", *asked), given.case_seconds)):
            return {}
        shared = {
            "--model": folder, "--data": folder / "problems.jsonl", "--steps": STEP["steps"],
            "--prompts": STEP["prompts"], "--generations": STEP["generations"],
            "--max-completion": 16 if given.device == "cpu" else STEP["completion"], "--learning-rate": 1e-6,
            "--threads": min(8, os.cpu_count() or 1),
        }  # fmt: skip
        arguments = [str(part) for pair in shared.items() for part in pair] + ["--full-length"]
        ours = Case("step, maieutic", _program("_step_side", *arguments, "--device", given.device), given.case_seconds)
        found: Found = {"maieutic": dict(*session.run(ours)[-1:])}
        why = without_trl(given)
        if why:
            print(f"gpu: step beside TRL skipped: {why}", file=sys.stderr)
            return {**found, "trl": None, "skipped": why}
        peer = [
            str(given.trl_python),
            str(given.peer or PEER),
            *arguments,
            "--micro",
            str(MICRO),
            "--dtype",
            "bfloat16",
        ]
        found["trl"] = dict(*session.run(Case("step, TRL", peer, 2 * given.case_seconds))[-1:])
    if found["trl"] and found["maieutic"]:
        found["ratio"] = found["trl"]["seconds_per_step"] / found["maieutic"]["seconds_per_step"]
    return found


def without_trl(given: argparse.Namespace) -> str:
    """Why there is no TRL to compare with; empty where there is."""
    if not (given.peer or PEER).exists():
        return f"no program at {given.peer or PEER} that runs TRL's GRPOTrainer (--peer)"
    asked = [str(given.trl_python), "-c", "import importlib.util as u; raise SystemExit(u.find_spec('trl') is None)"]
    try:
        there = subprocess.run(asked, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{given.trl_python}: {error}"
    return "" if there else f"{given.trl_python} has no trl (--trl-python)"


def told(check: Mapping[str, Any]) -> str:
    """A check as a line."""
    accepted = "" if check["accepted"] is None else f" (accepted: {check['accepted']:.3g})"
    note = f" – {check['note']}" if check["note"] else ""
    return f"{check['verdict']}  {check['check']}: {check['found']:.3g} {check['unit']}{accepted}{note}"


def tables(found: Found) -> str:
    """Markdown: what was measured, what was not."""
    limits = found["limits"]
    lines = []
    if limits:
        lines += [
            f"{limits['machine']}, torch {limits['torch']}: memory {limits['bandwidth'] / 1e12:.2f} TB/s, products "
            f"{limits['peak'] / 1e12:.0f} TFLOP/s in bfloat16 and {limits['peak_float32'] / 1e12:.0f} in float32",
            "",
        ]
    decoded = [p for p in found["points"] if p["kind"] == "decode" and "failed" not in p]
    if decoded:
        lines += ["| decode | rows | tokens/s | decoding alone | ms a step | of bandwidth | graphs |", "|---" * 7 + "|"]
        lines += [
            f"| {p['size']} | {p['rows']} | {p['tokens_per_second']:,.0f} | {p['decode_tokens_per_second']:,.0f} | "
            f"{p['milliseconds_a_step']:.2f} | {p['share_of_bandwidth']:.2f} | {p['not_captured'] or p['graphs']} |"
            for p in decoded
        ]
    learned = [p for p in found["points"] if p["kind"] == "update" and "failed" not in p]
    if learned:
        lines += ["", "| update | trained | attention | tokens/s | TFLOP/s | of peak | memory, GiB |", "|---" * 7 + "|"]
        lines += [
            f"| {p['size']} | {p['trained']} | {p['attention']} | {p['tokens_per_second']:,.0f} "
            f"| {p['teraflops']:.0f} | {p['share_of_peak']:.2f} | {p['peak_device_gib'] or 0:.1f} |"
            for p in learned
        ]
    ours, theirs = found["step"].get("maieutic"), found["step"].get("trl")
    if ours:
        beside = f"; TRL {theirs['seconds_per_step']:.2f} s, {found['step']['ratio']:.2f} times ours" if theirs else ""
        lines += ["", f"A step: {ours['seconds_per_step']:.2f} s{beside or '; ' + found['step'].get('skipped', '')}"]
    lines += ["", *(f"failed: {p['kind']}, {p['size']}: {p['failed']}" for p in found["points"] if "failed" in p)]
    lines += [f"left out: {each['case']}: {each['why']}" for each in found["left_out"]]
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="the checks alone; exit 1 where one fails")
    parser.add_argument("--sizes", nargs="+", choices=[*LARGE, *SIZES])
    parser.add_argument("--rows", nargs="+", type=int, help="of decoding")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", type=int, help="of prompts and of completions")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--case-seconds", type=float, default=200.0, help="for a case")
    parser.add_argument("--trl-python", type=Path, default=Path(sys.executable), help="a Python with trl")
    parser.add_argument("--peer", type=Path, help="TRL's program; see `python -m benchmarks step --help`")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that everything runs")
    parser.add_argument("--check-size", choices=list(SIZES), help="of the models that are checked")
    parser.add_argument("--quick", action="store_true", help="one size, two numbers of rows, shorter completions")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    on_cpu = given.device == "cpu"
    given.sizes = given.sizes or (["tiny"] if on_cpu else ["0.5B"] if given.quick else list(LARGE))
    given.rows = given.rows or list(FEW_ROWS if given.quick else ROWS)
    given.check_size = given.check_size or ("tiny" if on_cpu else "4M")
    return given


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    given = parse(arguments)
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("skipped: no CUDA device")
            if given.json:
                write_json(given.json, {"skipped": "no CUDA device"})
            return 0
    found = measure(given)
    print(tables(found))
    wrong = [check for check in found["checks"] if check["verdict"] == "FAIL"]
    print(f"checks: {len(found['checks']) - len(wrong)} passed or told, {len(wrong)} failed")
    return 1 if given.check and (wrong or not found["checks"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
