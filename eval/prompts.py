"""Prompt sets: data with a name and a version, in `eval/prompts/*.json`, whose label order is the order reported."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


FIELDS = {"name", "version", "note", "labels"}
SIDES = ("positive", "negative")


@dataclass(frozen=True)
class PromptPair:
    """The texts that say a label is there, and those that say it is not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class PromptSet:
    """
    A checked prompt set.

    Args:
        name, version (`str`): to be quoted beside every figure it gives.
        labels (`dict` of `str` to [`PromptPair`]): in the order of the file.
        sha256 (`str`): hash of the labels and their prompts, whatever the layout of the file.
    """

    name: str
    version: str
    labels: dict[str, PromptPair]
    sha256: str

    @property
    def texts(self) -> list[str]:
        """Every prompt once, in order."""
        sides = [side for pair in self.labels.values() for side in (pair.positive, pair.negative)]
        return list(dict.fromkeys(text for side in sides for text in side))


def load_prompts(path: str | Path) -> PromptSet:
    """
    Read and check a prompt set.

    Args:
        path (`str` or `Path`): a JSON file, an object of `name`, `version`, optionally `note`, and `labels`: label to
            an object of `positive` and `negative`, each a list of texts.

    Returns:
        [`PromptSet`].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or a part of another form; the message names the file, the part, what was expected and
            what came.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`prompts` must be a JSON file of prompts, got {path}, which is no file.")
    data = _read(path)
    labels = {label: _pair(path, label, value) for label, value in data["labels"].items()}
    digest = hashlib.sha256(json.dumps(data["labels"], ensure_ascii=False).encode()).hexdigest()
    return PromptSet(data["name"], data["version"], labels, digest)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise ValueError(f"`{path}` must be JSON in UTF-8 with no key twice, got: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"`{path}` must hold a JSON object, got {type(data).__name__}.")
    if unknown := sorted(set(data) - FIELDS):
        raise ValueError(f"`{path}` must hold only {sorted(FIELDS)}, got also {unknown}.")
    for field in ("name", "version"):
        if not isinstance(data.get(field), str) or not data[field].strip():
            raise ValueError(f"`{field}` of `{path}` must be a text, got {data.get(field)!r}.")
    if not isinstance(data.get("labels"), dict) or not data["labels"]:
        raise ValueError(f"`labels` of `{path}` must be an object of at least one label, got {data.get('labels')!r}.")
    return data


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"repeated keys {repeated}")
    return dict(pairs)


def _pair(path: Path, label: str, value: Any) -> PromptPair:
    if not isinstance(value, dict) or set(value) != set(SIDES):
        got = sorted(value) if isinstance(value, dict) else repr(value)
        raise ValueError(f"label {label!r} of `{path}` must be an object of {list(SIDES)}, got {got}.")
    for side in SIDES:
        _check_texts(f"`{side}` of label {label!r} of `{path}`", value[side])
    if shared := set(value["positive"]) & set(value["negative"]):
        raise ValueError(f"label {label!r} of `{path}` must not use a prompt on both sides, got {sorted(shared)}.")
    return PromptPair(tuple(value["positive"]), tuple(value["negative"]))


def _check_texts(name: str, texts: Any) -> None:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name} must be a list of at least one text, none empty, got {texts!r}.")
    if len(set(texts)) < len(texts):
        raise ValueError(f"{name} must not repeat a prompt, got {texts!r}.")


__all__ = ["PromptPair", "PromptSet", "load_prompts"]
