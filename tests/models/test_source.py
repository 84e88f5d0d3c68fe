"""One door to models on disk: both kinds of source say the same of the same model."""

import numpy as np
import pytest

from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.models.exports import GgufExport
from minibule.models.gguf_read import GgufModel
from minibule.models.huggingface import COMPANIONS, HuggingFaceFolder
from minibule.models.load import load_model
from minibule.models.source import open_source


def test_a_folder_and_the_gguf_file_made_of_it_say_the_same(tmp_path):
    path = tmp_path / "model.gguf"
    GgufExport("f32").write(load_model(embedded_folder()), load_chat(embedded_folder()), path)
    folder, file = open_source(embedded_folder()), open_source(str(path))
    assert isinstance(folder, HuggingFaceFolder) and isinstance(file, GgufModel)
    assert (folder.path, file.path) == (embedded_folder(), path)
    config = folder.config()
    assert file.config() == config
    ours, theirs = folder.weights(config, narrow=False), file.weights(config, narrow=False)
    assert list(ours) == list(theirs)
    for name, weight in ours.items():
        np.testing.assert_array_equal(theirs[name], weight)
    ids = folder.chat().encode_prompt("hello")
    np.testing.assert_array_equal(file.chat().encode_prompt("hello"), ids)
    assert {p.name for p in folder.companions()} <= set(COMPANIONS) and file.companions() == []
    for source, name in ((folder, "hf"), (file, "gguf")):
        beside = tmp_path / name
        beside.mkdir()
        source.save_companions(beside, config, "F32")
        again = open_source(beside)
        assert again.config() == config and again.chat().stop == folder.chat().stop
        np.testing.assert_array_equal(again.chat().encode_prompt("hello"), ids)


def test_what_is_a_source_and_what_is_none(tmp_path):
    with pytest.raises(InputError, match="no such folder; expected a Hugging Face model folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such file; expected a GGUF model"):
        open_source(tmp_path / "nowhere.gguf")
    (tmp_path / "file").write_bytes(b"something else")
    with pytest.raises(InputError, match="not a whole GGUF file"):
        open_source(tmp_path / "file")
