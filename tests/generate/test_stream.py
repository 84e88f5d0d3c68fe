"""An answer on the screen as it comes: at once, and never half a character."""

import pytest

from minibule.files import embedded_folder
from minibule.generate.stream import Printer
from minibule.models.chat_files import load_chat


@pytest.fixture(scope="module")
def chat():
    return load_chat(embedded_folder())


def test_each_token_is_printed_as_it_comes_and_no_half_character(chat, capsys):
    text = "a 数 b"
    (ids,) = chat.encode_answers([text])
    printer, shown = Printer(chat), []
    for token in ids:
        printer(0, int(token))
        shown.append(capsys.readouterr().out)
    printer.end()
    assert "".join(shown) == text and "" in shown  # bytes of 数 were held back
    assert "\ufffd" not in "".join(shown)
    assert sum(map(bool, shown)) > 3  # not all at the end
    assert capsys.readouterr().out == "\n"


def test_what_ends_in_half_a_character_is_shown_as_that(chat, capsys):
    (ids,) = chat.encode_answers(["a 数"])
    printer = Printer(chat)
    for token in ids[:-1]:
        printer(0, int(token))
    assert capsys.readouterr().out == "a "
    printer.end()
    assert capsys.readouterr().out == "\ufffd\n"
