"""The forms a model is written in: each said once, and all that is said of it true."""

import pytest
from helpers import random_adapter

from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.models.exports import EXPORTS, FORMS, GgufExport, HuggingFaceExport
from minibule.models.gguf_write import GGUF_TYPES
from minibule.models.load import load_model


@pytest.fixture(scope="module")
def embedded():
    model = load_model(embedded_folder())
    model.adapter = random_adapter(model.config)
    return model, load_chat(embedded_folder())


def test_what_a_run_may_be_told():
    assert list(EXPORTS) == ["hf", "gguf-lora", *(f"gguf:{dtype}" for dtype in GGUF_TYPES)]
    for name, export in EXPORTS.items():
        assert str(export) == name and type(export) is FORMS[export.form]
    assert len({export.place for export in EXPORTS.values()}) == len(EXPORTS)


@pytest.mark.parametrize("name", EXPORTS)
def test_it_takes_about_the_room_that_was_foretold(name, embedded, tmp_path):
    """Within 5 %: metadata, the tokenizer, and norms that stay F32 in a GGUF file."""
    model, chat = embedded
    export, path = EXPORTS[name], tmp_path / "out"
    export.check(model, chat)
    export.write(model, chat, path)
    written = sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))
    assert export.size(model) == pytest.approx(written, rel=0.05)
    assert (export.memory(model) > 0) == (name == "hf")


def test_sixteen_bits_take_half(embedded):
    model, _ = embedded
    assert HuggingFaceExport("bf16").size(model) * 2 == HuggingFaceExport("f32").size(model)


def test_a_type_that_a_form_has_not():
    with pytest.raises(InputError, match="--dtype q3_k: gguf is written as one of f32, f16"):
        GgufExport("q3_k")
    with pytest.raises(InputError, match="hf is written as one of f32, f16, bf16"):
        HuggingFaceExport("q8_0")
