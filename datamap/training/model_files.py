"""What the files in the directory of a model say: whether it is whole, and what it was trained on."""

from __future__ import annotations

from pathlib import Path

from datamap.core.artifacts import model_meta
from datamap.core.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)


def check_whole_model(path: str | Path) -> None:
    """Refuse a model directory whose training did not finish; a Hub name, or one trained elsewhere, passes."""
    if not Path(path).is_dir():
        return
    if not (Path(path) / "config.json").exists():
        raise UserError(f"{path} holds no config.json, so no model; run.py --do_train writes one")
    check_has_tokenizer(path)
    meta = model_meta(path)
    if meta and meta.get("status") != "finished":
        raise UserError(f"model {path} is not whole: its training is marked {meta.get('status')}; train it again")


def check_has_tokenizer(path: str | Path) -> None:
    """Refuse a directory without a tokenizer, in whose place the library would make up one that knows no word."""
    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"{path} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); save it beside the model")


def trained_fingerprint(model: str | Path) -> str | None:
    """The fingerprint of what run.py trained the model in a directory on, checkpoints too; None where that is unknown,
    as of a Hub model."""
    path = Path(model)
    if not path.is_dir():
        return None
    meta = model_meta(path) or (model_meta(path.parent) if path.name.startswith("checkpoint-") else None)
    return meta["datasets"][0]["fingerprint"] if meta and meta.get("datasets") else None
