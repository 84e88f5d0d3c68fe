"""The one door to a model on disk, whatever it is stored as."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from minibule.core.shapes import LlamaConfig
from minibule.files import existing_folder
from minibule.machine.matrix import Array, Matrix
from minibule.models.gguf_file import read_gguf
from minibule.models.gguf_read import GgufModel
from minibule.models.huggingface import HuggingFaceFolder
from minibule.models.named import EXPECTED, model_path, refuse_hub_name
from minibule.text.chat import Chat


class Source(Protocol):
    """A model on disk, of which nothing is read before it is asked for."""

    @property
    def path(self) -> Path: ...
    def config(self) -> LlamaConfig:
        """The shapes; InputError names all that is not supported."""

    def weights(self, config: LlamaConfig, narrow: bool) -> Mapping[str, Matrix]:
        """name -> weight, float32; `narrow` keeps large matrices of 16 bits in 16 bits."""

    def weight(self, config: LlamaConfig, name: str) -> Array:
        """One of them, as float32."""

    def merged(self) -> str:
        """The fingerprint of the adapter that a run or an export has merged into its weights, or
        "" (of weights that have been read)."""

    def chat(self) -> Chat:
        """The tokenizer and chat template."""

    def companions(self) -> list[Path]:
        """The files that go along with a folder's weights; InputError for one that cannot be
        copied."""

    def save_companions(self, folder: Path, config: LlamaConfig, dtype: str) -> None:
        """Write config.json, tokenizer and template beside merged weights of that dtype."""


def open_source(path: str | Path) -> Source:
    """The model folder or GGUF file at `path`, or the model of that name (`named`).

    What is in it is read when it is asked for. Raises InputError if there is no such thing, or a
    file that is no whole GGUF.
    """
    path = model_path(path)
    if path.suffix == ".gguf" or path.is_file():
        return GgufModel(read_gguf(path))
    refuse_hub_name(path)
    return HuggingFaceFolder(existing_folder(path, EXPECTED))
