"""The one door to a model on disk, whatever it is stored as.

Both kinds of source answer to the same names:

    config()                      the shapes; InputError names all that is not supported
    weights(config, narrow)       name -> array; narrow keeps large 16-bit matrices in 16 bits
    weight(config, name)          one of them, as float32
    merged()                      the fingerprint of the adapter that a run or an export has merged
                                  into its weights, or "" (of weights that have been read)
    chat()                        the tokenizer and chat template
    companions()                  the files that go along with a folder's weights; InputError for
                                  one that cannot be copied
    save_companions(folder, ...)  config.json, tokenizer and template beside merged weights
"""

from pathlib import Path

from minibule.files import existing_folder
from minibule.models.gguf_file import read_gguf
from minibule.models.gguf_read import GgufModel
from minibule.models.huggingface import HuggingFaceFolder
from minibule.models.named import EXPECTED, model_path, refuse_hub_name


def open_source(path: str | Path) -> HuggingFaceFolder | GgufModel:
    """The model folder or GGUF file at `path`, or the model of that name (`named`).

    What is in it is read when it is asked for. Raises InputError if there is no such thing, or a
    file that is no whole GGUF.
    """
    path = model_path(path)
    if path.suffix == ".gguf" or path.is_file():
        return GgufModel(read_gguf(path))
    refuse_hub_name(path)
    return HuggingFaceFolder(existing_folder(path, EXPECTED))
