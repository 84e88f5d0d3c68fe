"""Models and adapters on disk: Hugging Face folders in and out, PEFT adapters in and out.

Everything is checked before anything is used: all missing, unknown and misshapen tensors of a
checkpoint are listed in one error. Folders are written whole or not at all.
"""

from pathlib import Path

from minibule.core.llama import Llama
from minibule.files import existing_folder
from minibule.models.gguf_file import read_gguf
from minibule.models.gguf_read import gguf_config, gguf_weights, is_gguf
from minibule.models.huggingface import is_derived, load_config, weight_files
from minibule.models.peft import load_adapter
from minibule.models.safetensors import (
    read_tensors,
    stored_tensors,
)

# -- models in -------------------------------------------------------------------------------------


def load_model(
    path: str | Path, adapter: str | Path | None = None, *, narrow: bool = False
) -> Llama:
    """Load a LlamaForCausalLM from a Hugging Face folder or a GGUF file.

    Parameters
    ----------
    path : folder with config.json and model.safetensors, or shards and their index; or GGUF file
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
        not compute, or if its tensors are not exactly the expected ones, or not finite.
    """
    if is_gguf(path):
        file = read_gguf(path)
        config = gguf_config(file)
        weights = gguf_weights(file, config)
    else:
        folder = existing_folder(path, "a Hugging Face model folder, or a GGUF file")
        config = load_config(folder)
        stored = {
            name: tensor
            for name, tensor in stored_tensors(weight_files(folder)).items()
            if not is_derived(name, config)
        }
        weights = read_tensors(stored, config.tensor_shapes(), folder, narrow)
    model = Llama(config, weights)
    if adapter is not None:
        model.adapter = load_adapter(adapter, config)
    return model


# -- models out ------------------------------------------------------------------------------------


# -- PEFT adapters ---------------------------------------------------------------------------------
