"""The one door to a model on disk, whatever it is stored as.

Both kinds of source answer to the same names:

    config()                      the shapes; InputError names all that is not supported
    weights(config, narrow)       name -> array; narrow keeps large 16-bit matrices in 16 bits
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


def open_source(path: str | Path) -> HuggingFaceFolder | GgufModel:
    """The model folder or GGUF file at `path`; what is in it is read when it is asked for.

    Raises InputError if there is neither, or a file that is no whole GGUF.
    """
    if Path(path).suffix == ".gguf" or Path(path).is_file():
        return GgufModel(read_gguf(path))
    return HuggingFaceFolder(existing_folder(path, "a Hugging Face model folder, or a GGUF file"))
