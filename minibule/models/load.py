"""A model in: from a Hugging Face folder or a GGUF file, with an adapter on top if asked for."""

from pathlib import Path

from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.models.peft import fingerprint, load_adapter
from minibule.models.source import open_source


def load_model(
    path: str | Path, adapter: str | Path | None = None, *, narrow: bool = False
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

    Returns
    -------
    Llama
        `model.logits(ids)` maps (T,) token ids to (T, vocab_size) float32.

    Raises
    ------
    InputError
        If the folder is missing, holds another architecture or one with features this code does
        not compute, or if its tensors are not exactly the expected ones, or not finite; or if the
        adapter has been merged into it.
    """
    source = open_source(path)
    config = source.config()
    model = Llama(config, source.weights(config, narrow))
    if adapter is not None:
        model.adapter = load_adapter(adapter, config)
        if source.merged() == fingerprint(model.adapter):
            raise InputError(
                f"{adapter}: this adapter is merged into {path} already, and would count twice. "
                "Leave it out, or name the model it was trained on."
            )
    return model
