"""Which of the measured cases a model has learned from, as far as its cards tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.adapter import CARD_FILE
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.evaluation.cases import Case, listed


def learned_from(cases: Sequence[Case], model: str, adapter: Path | None) -> list[str]:
    """List the cases that the card of the model or of its adapter names among those it was trained on.

    A case "ct_sarcoma/sts_001" is found as "sts_001", too, and the other way round: its folder may have been trained on
    or measured by itself. Names are all there is to go by: cards hold no images.
    """
    cards = [store.card_path(find_model(model)), *([] if adapter is None else [adapter / CARD_FILE])]
    named = {name for card in cards for name in _trained_on(card)}
    return [case.name for case in cases if any(_is_one(case.name, name) for name in named)]


def note_on(names: Sequence[str]) -> str:
    """Say what figures on such cases are worth."""
    which = "This case is" if len(names) == 1 else f"{len(names)} cases are"
    return (
        f"{which} named among the training cases of what segments ({listed(names)}); figures on patients that it has "
        "seen say little about others."
    )


def _is_one(name: str, other: str) -> bool:
    return f"/{name}".endswith(f"/{other}") or f"/{other}".endswith(f"/{name}")


def _trained_on(card: Path) -> set[str]:
    """Names in a card of a base, of a self-prompt head, or of an adapter; none where it is missing or says nothing."""
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    lists = (_in(content, "training", "data"), _in(content, "data", "cases", "train"))
    return {name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)}


def _in(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
