"""Model and adapter folders of the ODD shapes, GGUF files, and ways to break them."""

import json

from gguf import GGUFWriter
from helpers import ODD, random_adapter, random_llama
from safetensors.numpy import load_file, save_file

from minibule.files import write_json
from minibule.models.gguf_file import read_gguf
from minibule.models.huggingface import config_json
from minibule.models.peft import save_adapter
from minibule.models.save import save_weights


def model_folder(parent):
    """A model folder in F32, without a tokenizer."""
    folder = parent / "model"
    folder.mkdir()
    write_json(folder / "config.json", config_json(ODD, "F32"))
    save_weights(random_llama(), folder, "F32")
    return folder


def adapter_folder(parent):
    """An adapter's folder, on all projections."""
    save_adapter(random_adapter(), ODD, parent / "adapter", "base")
    return parent / "adapter"


def change_json(path, **changes):
    """Give fields of a JSON object other values, or with "absent" take them away."""
    value = json.loads(path.read_text())
    write_json(path, {k: v for k, v in (value | changes).items() if v != "absent"})


def change_tensors(path, change):
    """Let `change` do what it likes with the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_metadata(path, changes):
    """Give keys of an F32 GGUF file's metadata these values."""
    file = read_gguf(path)
    tensors = {name: file.array(name) for name in file.tensors}
    writer = GGUFWriter(path, "llama")
    writer.kv_data[0].clear()
    for key, value in (file.metadata | changes).items():
        writer.add_key_value(key, value.value, value.type, value.sub_type)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
