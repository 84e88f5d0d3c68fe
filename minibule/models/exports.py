"""The forms in which a model is written for other programs: all there is to know of each.

gguf:q8_0     the merged model, for llama.cpp, its matrices of the type q8_0
gguf-lora     the adapter alone, for llama.cpp's --lora
hf            the merged Hugging Face folder
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.files import writing
from minibule.models.gguf_write import (
    GGUF_TYPES,
    check_gguf,
    export_gguf,
    export_gguf_lora,
    gguf_bytes,
)
from minibule.models.safetensors import TORCH_DTYPE
from minibule.models.save import merged_bytes, save_model
from minibule.models.source import open_source
from minibule.text.chat import Chat


@dataclass(frozen=True)
class Export:
    """A form and the type of its matrices. InputError for a type that the form has not.

    form      its name
    about     what it is, for people
    dtypes    the types it has
    usual     the one taken where none is named
    label     what a run calls it at its end
    is_folder whether it is written as one
    """

    is_folder: ClassVar[bool] = False

    form: ClassVar[str]
    about: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]
    usual: ClassVar[str]
    label: ClassVar[str]

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in self.dtypes:
            known = ", ".join(self.dtypes)
            raise InputError(f"--dtype {self.dtype}: {self.form} is written as one of {known}.")

    def __str__(self) -> str:
        """As a run's `--export` spells it."""
        return self.form

    @property
    def place(self) -> str:
        """The name of its file or folder in a run's folder."""
        raise NotImplementedError

    def check(self, model: Llama, chat: Chat) -> None:
        """InputError where `write` would fail on this model: to be known before a long run."""

    def write(self, model: Llama, chat: Chat, path: Path) -> None:
        """Write the file or folder `path`. InputError where that cannot be."""
        raise NotImplementedError

    def size(self, model: Llama) -> int:
        """About how many bytes it will have."""
        raise NotImplementedError

    def memory(self, model: Llama) -> int:
        """Bytes that writing takes beside the model's own, where that is more than a tensor."""
        return 0


class GgufExport(Export):
    form = "gguf"
    about = "the merged model, for llama.cpp"
    dtypes = GGUF_TYPES
    usual = "f16"
    label = "GGUF"

    def __str__(self) -> str:
        return f"{self.form}:{self.dtype}"

    @property
    def place(self) -> str:
        return f"model-{self.dtype}.gguf"

    def check(self, model: Llama, chat: Chat) -> None:
        check_gguf(model.config, chat, self.dtype)

    def write(self, model: Llama, chat: Chat, path: Path) -> None:
        export_gguf(model, chat, path, self.dtype)

    def size(self, model: Llama) -> int:
        return gguf_bytes(model.config.parameters, self.dtype)


class GgufLoraExport(Export):
    form = "gguf-lora"
    about = "the adapter alone, for llama.cpp's --lora"
    dtypes = ("f32",)
    usual = "f32"
    label = "GGUF LoRA"

    @property
    def place(self) -> str:
        return "adapter.gguf"

    def write(self, model: Llama, chat: Chat, path: Path) -> None:
        export_gguf_lora(model, path)

    def size(self, model: Llama) -> int:
        return 4 * sum(p.size for p in model.adapter.params.values()) if model.adapter else 0


class HuggingFaceExport(Export):
    form = "hf"
    about = "the merged Hugging Face folder"
    dtypes = tuple(dtype.lower() for dtype in TORCH_DTYPE)
    usual = "f32"
    label = "merged"
    is_folder = True

    @property
    def place(self) -> str:
        return "merged"

    def check(self, model: Llama, chat: Chat) -> None:
        open_source(chat.source).companions()

    def write(self, model: Llama, chat: Chat, path: Path) -> None:
        with writing(path):
            save_model(model, path, chat.source, self.dtype.upper())

    def size(self, model: Llama) -> int:
        return (4 if self.dtype == "f32" else 2) * model.config.parameters

    def memory(self, model: Llama) -> int:
        return merged_bytes(model)


FORMS: dict[str, type[Export]] = {
    export.form: export for export in (GgufExport, GgufLoraExport, HuggingFaceExport)
}

# What a run may be told to write, by what it is told: hf and gguf-lora in their usual type, gguf in
# each that it has.
EXPORTS: dict[str, Export] = {
    str(export): export
    for export in (
        HuggingFaceExport(HuggingFaceExport.usual),
        GgufLoraExport(GgufLoraExport.usual),
        *map(GgufExport, GgufExport.dtypes),
    )
}
