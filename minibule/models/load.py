"""A model in: from a Hugging Face folder or a GGUF file, with an adapter on top if asked for."""

import functools
from pathlib import Path

from minibule.core.llama import Llama
from minibule.core.shapes import PROJECTIONS, LlamaConfig
from minibule.errors import InputError
from minibule.machine.matmul import Mode, Packed, check_installed, faster, is_installed, mode_of
from minibule.machine.matrix import Array, Matrix
from minibule.machine.threads import set_threads, threads
from minibule.models.peft import fingerprint, load_adapter
from minibule.models.source import Source, open_source

# Of fewer parameters, a model's matrix products are over before a second thread has woken up; on a
# busy machine the two then wait for each other. And other ways to multiply gain nothing.
SMALL_MODEL = 20_000_000

MANY_ROWS = 128  # of x, in training and where many answers are sampled


def load_model(
    path: str | Path,
    adapter: str | Path | None = None,
    *,
    narrow: bool = False,
    matmul: Mode = "float32",
    rows: int = MANY_ROWS,
    low: bool = False,
) -> Llama:
    """Load a LlamaForCausalLM from a Hugging Face folder or a GGUF file.

    Parameters
    ----------
    path : folder with config.json and model.safetensors, or shards and their index; or GGUF file;
        or the name of a model in `named`
        A folder's tensors may be F32, F16 or BF16, a GGUF file's of any type that the gguf package
        dequantises; they are widened to float32.
    adapter : PEFT adapter folder, optional
    narrow : keep a folder's large F16 and BF16 matrices in 16 bits, and widen each where it is
        used: half the memory and the same numbers, somewhat slower
    matmul : float32, bfloat16, bfloat16x2, bfloat16x3 or auto
        How matrices are multiplied: see `machine.matmul`. Those that are packed are read from their
        file once more, where more than products is asked of them.
    rows : about how many rows they are multiplied with at once, for `auto`
    low : pack them anew for each product: less memory, more time, the same numbers

    Returns
    -------
    Llama
        `model.logits(ids)` maps (T,) token ids to (T, vocab_size) float32.

    Raises
    ------
    InputError
        If the folder is missing, holds another architecture or one with features this code does
        not compute, or if its tensors are not exactly the expected ones, or not finite; or if the
        adapter has been merged into it; or if the library that `matmul` asks for is not installed.
    """
    check_installed(matmul)
    source = open_source(path)
    config = source.config()
    model = Llama(config, source.weights(config, narrow))
    if matmul == "auto":
        widest = model.weights["model.layers.0.mlp.up_proj.weight"]
        small = config.parameters < SMALL_MODEL
        matmul = "float32" if small else faster(widest, rows)
    if matmul != "float32":
        model.weights = _packed(model, source, matmul, low)
    if adapter is not None:
        model.adapter = load_adapter(adapter, config)
        if source.merged() == fingerprint(model.adapter):
            raise InputError(
                f"{adapter}: this adapter is merged into {path} already, and would count twice. "
                "Leave it out, or name the model it was trained on."
            )
    return model


def settle_threads(number: int, config: LlamaConfig) -> None:
    """Let NumPy's products use so many threads; 0: as many as they do, or one for a small model."""
    set_threads(number)
    if not number and threads() > 1 and config.parameters < SMALL_MODEL:
        set_threads(1)


def settled(matmul: Mode, path: str | Path) -> Mode:
    """What `auto` comes to, for this model on this machine; anything else as it is.

    InputError where the library that it asks for is not installed.
    """
    check_installed(matmul)
    if matmul == "auto":
        return mode_of(load_model(path, matmul="auto").head) if is_installed() else "float32"
    return matmul


def _packed(model: Llama, source: Source, mode: Mode, low: bool) -> dict[str, Matrix]:
    """The model's weights, those that are multiplied packed one by one, in place of their numbers.

    The embedding's rows are looked up as well: where it is the head, too, its numbers are kept.
    """
    weights, packed = dict(model.weights), dict[str, Matrix]()
    model.weights = {}
    while weights:
        name = next(iter(weights))
        W = weights.pop(name)
        parts = name.split(".")
        looked_up = name == "model.embed_tokens.weight"
        if parts[-2] in PROJECTIONS or parts[0] == "lm_head":
            total = float(W[:].sum())
            again = functools.partial(_again, source, model.config, name, total)
            packed[name] = Packed(W, mode, again, keep=not low)
        elif looked_up and model.config.tie_word_embeddings:
            packed[name] = Packed(W, mode, keep=not low)
        else:
            packed[name] = W
    return packed


def _again(source: Source, config: LlamaConfig, name: str, total: float) -> Array:
    """A weight read once more; InputError if its numbers do not have the sum that they had."""
    W = source.weight(config, name)
    if float(W.sum()) != total:
        raise InputError(
            f"{source.path}: {name} has changed since it was read; expected the model to stay as "
            "it is while it is used. Start anew."
        )
    return W
