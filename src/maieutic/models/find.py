"""What a model's name means: a folder, an adapter's folder and its base model, or an id on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # of the HTTP client it was built on, which differs between its versions

from maieutic.errors import ModelError

_CONFIGS = ("config.json", "adapter_config.json")


def find_model(source: str | Path) -> str:
    """The model folder (absolute, so that an adapter finds its base from anywhere) or the Hub id that `source` means.

    Raises `ModelError` for a folder that holds no model and for a path that does not exist, with the nearest folder
    that does; for a Hub id (`owner/name` or `name`) that is neither in the local cache nor to be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if holds(path, "config.json") or holds(path, "adapter_config.json"):
            return str(path.resolve())
        inside = [
            found.parent
            for depth in ("*", "*/*")
            for name in _CONFIGS
            for found in sorted(path.glob(f"{depth}/{name}"))
        ]
        hint = f"; did you mean {str(inside[0])!r}?" if inside else "; give the folder that a model was saved to"
        raise ModelError(f"the folder {str(path)!r} holds no model (neither {' nor '.join(_CONFIGS)}){hint}")
    text = str(source)
    if path.exists():
        raise ModelError(f"got the file {text!r}; expected a model folder: {str(path.parent)!r}, perhaps")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        raise ModelError(f"no model folder at {text!r}{_nearest(path) or '; check the path'}")
    _ask_hub(text)
    return text


def positions(source: str | Path) -> int | None:
    """Tokens that the model in a folder can read, prompt and completion together; None where no folder says so."""
    folder = Path(source).expanduser()
    if holds(folder, "adapter_config.json") and not holds(folder, "config.json"):
        folder = Path(adapter_base(folder))
    if not holds(folder, "config.json"):
        return None
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")


def adapter_base(folder: Path) -> str:
    """The base model that a PEFT adapter folder names: its path (perhaps relative to the folder) or Hub id.

    Raises `ModelError` when the folder names none, or holds another kind of adapter than LoRA.
    """
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if said.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {said.get('peft_type')!r}; expected LORA")
    named = said.get("base_model_name_or_path")
    if not named:
        raise ModelError(
            f"{folder}/adapter_config.json names no base model; write its path or id to base_model_name_or_path"
        )
    beside = folder / named
    return str(beside) if beside.is_dir() else str(named)


def adapter_revision(folder: Path) -> str | None:
    """The revision of its base model that a PEFT adapter folder was trained on, where it names one."""
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("revision")


def base_of(source: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """The base model that is loaded for `source`, folder or Hub id, and its revision; of a model that is no adapter,
    that is the model itself at `revision`. Raises `ModelError` as `find_model` does."""
    found = find_model(source)
    if not holds(found, "adapter_config.json"):
        return found, revision
    return find_model(adapter_base(Path(found))), adapter_revision(Path(found))


def holds(folder: str | Path, name: str) -> bool:
    """Whether `folder` is a folder with a file of that name."""
    return bool(folder) and (Path(folder) / name).is_file()


def unreadable(source: str, error: Exception) -> ModelError:
    """The error to raise when transformers could not read the model at `source`."""
    return ModelError(f"cannot read the model {source!r}: {_first_line(error)}")


def _ask_hub(name: str) -> None:
    """One quick question, so that a wrong name fails at once and not after the many retries of a download."""
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"got model {name!r}: no such folder here{_nearest(Path(name))}, and the Hugging Face Hub cannot give it: "
            f"{_first_line(error)} Check the name; for a machine without network, download the model elsewhere and "
            "give its folder"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


def _nearest(path: Path) -> str:
    """`; did you mean …?` with the most similar existing folder, or nothing."""
    around = sorted(other.name for other in path.parent.iterdir() if other.is_dir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, around, n=1, cutoff=0.4)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
