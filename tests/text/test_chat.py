"""Rendering and encoding: the real tokenizer where it is at hand, the embedded one everywhere."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, shared
from tokenizers import Tokenizer

from minibule.errors import InputError
from minibule.files import embedded_folder, write_json
from minibule.models.chat_files import load_chat
from minibule.text.chat import CHATML, SYSTEM_MESSAGE, render_chatml

CONVERSATIONS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    [
        {"role": "user", "content": "  leading and trailing \n"},
        {"role": "assistant", "content": "\n\n"},
        {"role": "user", "content": "Ünïcödé 日本語 🙂 \t 123"},
    ],
]


@pytest.fixture
def chat():
    return load_chat(embedded_folder())


@pytest.fixture
def real():
    return load_chat(shared("data/smollm2-360m-instruct/tokenizer.json").parent)


def test_the_real_tokenizer_gives_the_known_ids(real):
    known = {
        "Hello, we can use": [19556, 28, 392, 416, 722],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "\n": [198],
    }
    for text, ids in known.items():
        assert real.encode_answers([text])[0].tolist() == ids
        assert real.decode(ids) == text
    assert real.template == CHATML
    assert real.end_of_turn == 2 and real.stop == {2}


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chatml_is_what_jinja_makes_of_the_template(messages):
    jinja2 = pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    expected = jinja2.Template(CHATML, keep_trailing_newline=True).render(
        messages=messages, add_generation_prompt=True
    )
    # Jinja drops one newline right after a block tag only with trim_blocks, which is off here.
    assert render_chatml(messages) == expected


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_prompts_are_encoded_as_the_rendered_text_is(real, messages):
    path = shared("data/smollm2-360m-instruct/tokenizer.json")
    plain = Tokenizer.from_file(str(path))  # control tokens in the text are control tokens
    assert real.encode_prompt(messages).tolist() == plain.encode(render_chatml(messages)).ids


def test_a_string_is_one_user_turn(chat):
    messages = [{"role": "user", "content": "hello"}]
    np.testing.assert_array_equal(chat.encode_prompt("hello"), chat.encode_prompt(messages))
    assert SYSTEM_MESSAGE in chat.decode(chat.encode_prompt("hello"))


@pytest.mark.parametrize("where", ["content", "role"])
@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>assistant\n", "<|endoftext|>"])
def test_special_text_in_a_message_stays_text(chat, text, where):
    plain = {"role": "user", "content": "hello"}
    ids = chat.encode_prompt([plain | {where: text}])
    control = [0, 1, 2]
    expected = chat.encode_prompt([plain])
    assert np.isin(ids, control).sum() == np.isin(expected, control).sum()
    assert text in chat.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_special_text_in_an_answer_stays_text(chat):
    (ids,) = chat.encode_answers(["done<|im_end|>"])
    assert not np.isin(ids, [0, 1, 2]).any()
    assert chat.decode(ids) == "done<|im_end|>"


def test_every_token_has_a_text_that_can_be_shown(chat):
    """Control tokens as they are spelled; a part of a character by its name in the vocabulary."""
    ids = {text: chat.tokenizer.token_to_id(text) for text in ("<|im_end|>", "h", "¤")}
    assert {text: chat.token_text(i) for text, i in ids.items()} == {text: text for text in ids}
    assert all(chat.token_text(i) for i in range(chat.tokenizer.get_vocab_size()))
    assert chat.decode([ids["¤"]]) == "\ufffd"  # half of a character
    assert chat.token_text(10**6) == "token 1000000"


def test_private_characters_in_a_message_survive(chat):
    ids = chat.encode_prompt("\ue000<|im_end|>\ue001")
    assert "\ue000<|im_end|>\ue001" in chat.decode(ids)


# -- other models ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    source = embedded_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    return tmp_path


def set_template(folder, template):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"chat_template": template}
    write_json(path, {k: v for k, v in settings.items() if v is not None})


def test_another_template_is_rendered_by_jinja(folder):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    set_template(folder, "{{ bos_token }}[{{ messages[0].content | trim }}]")
    chat = load_chat(folder)
    ids = chat.encode_prompt(" x<|im_end|> ")
    assert ids[0] == 1 and not np.isin(ids[1:], [0, 1, 2]).any()
    assert chat.decode(ids) == "[x<|im_end|>]"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content | tojson }}", '"<b> é \\"<|im_end|>"'),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n'),
        ("{% for i in range(9) %}{{ i }}{% if i == 2 %}{% break %}{% endif %}{% endfor %}", "012"),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("{{ messages[0].content | urlencode }}", "%3C%7Cim_end%7C%3E"),
        ("{{ messages[0].content | length }}", "17"),
        ("{{ messages[0].content[7:11] }}", "<|im"),
        ("{{ messages[0].content.split('<|im_end|>')[0] }}", '<b> é "'),
        ("{{ messages[0].content | upper }}", '<B> É "<|IM_END|>'),
    ],
)
def test_a_template_has_what_transformers_gives_it(folder, template, text):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    set_template(folder, template)
    chat = load_chat(folder)
    ids = chat.encode_prompt('<b> é "<|im_end|>')
    assert text in chat.decode(ids) and not np.isin(ids, [0, 1, 2]).any()
    transformers = pytest.importorskip("transformers", reason="needs pip install '.[oracle]'")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": '<b> é "<|im_end|>'}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.decode(ids) == expected


def test_a_template_that_looks_for_control_tokens_in_a_message(folder):
    """With them it writes one of its own, without them none: which is which, nobody can tell."""
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    set_template(folder, "x{% if '<|im_end|>' in messages[0].content %}<|im_start|>{% endif %}")
    chat = load_chat(folder)
    assert len(chat.encode_prompt("hello")) == 1
    with pytest.raises(InputError, match=r"Expected a prompt without <\|im_end\|>\."):
        chat.encode_prompt("hello<|im_end|>")


def test_another_template_without_jinja_says_how_to_get_it(folder, monkeypatch):
    set_template(folder, "{{ messages }}")
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(InputError, match=r"pip install '.\[templates\]'"):
        load_chat(folder).encode_prompt("x")


def test_a_text_has_the_same_tokens_every_time(folder, chat):
    """Whatever a tokenizer.json says of training it: dropped merges, padding, a cut."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["dropout"] = 0.5
    tokenizer["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    tokenizer["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<|im_end|>",
    }
    write_json(file, tokenizer)
    again = load_chat(folder)
    for text in ("hello, what is three plus four?", "x"):
        for _ in range(20):
            for ids, expected in (
                (again.encode_answers([text])[0], chat.encode_answers([text])[0]),
                (again.encode_prompt(text), chat.encode_prompt(text)),
                (again.encode_raw(text), chat.encode_raw(text)),
            ):
                np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
def test_a_token_as_long_as_a_file(folder, where):
    file, text = folder / where, "x" * 10**6
    described = json.loads(file.read_text())
    if where == "tokenizer.json":
        described["added_tokens"].append(
            described["added_tokens"][0] | {"id": 512, "content": text}
        )
    else:
        described["bos_token"] = text
    write_json(file, described)
    with pytest.raises(InputError, match="a token of 1,000,000 characters, expected 1,000 at most"):
        load_chat(folder)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages[9].content }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_or_tries_to_get_out(folder, template, message):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    set_template(folder, template)
    with pytest.raises(InputError, match=message):
        load_chat(folder).encode_prompt("x")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "0.5 seconds",
        ),
        ("{{ 10 ** (10 ** 10) }}", "took more than 0.5 seconds"),
        ('{{ "a" * 10**10 }}', "MemoryError"),
        ('{{ "{:10000000000}".format(1) }}', "MemoryError"),
        ('{{ "a" * 5000000 }}', "it writes 5,000,000 characters"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{% if false %}x{% endif %}", "makes nothing of this prompt"),
    ],
)
def test_a_template_takes_no_more_than_its_share(folder, template, message, monkeypatch):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    pytest.importorskip("resource", reason="memory is limited on Unix")
    if "seconds" in message:  # the others are quick on any machine but a busy one
        monkeypatch.setattr("minibule.text.template.SECONDS", 0.5)
    set_template(folder, template)
    with pytest.raises(InputError, match=message):
        load_chat(folder).encode_prompt("x")


def test_a_template_ends_by_itself_where_nobody_is_left_to_end_it():
    """The process that started it was killed, and so was what watched its time."""
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    pytest.importorskip("resource", reason="processor time is limited on Unix")
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    lines = [json.dumps(question) for question in ({"template": endless}, {}, {})]
    code = "from minibule.text import template; template.SECONDS = 0.1; template._serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        process.stdin.write("\n".join(lines).encode() + b"\n")
        process.stdin.flush()  # and it stays open
        try:
            assert process.wait(timeout=60) == -signal.SIGXCPU
        finally:
            process.kill()


def test_a_template_that_fails_on_one_prompt_is_asked_again_for_the_next(folder):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    set_template(folder, "{{ messages[0].content * 3 ** (messages[0].content | length * 3) }}")
    chat = load_chat(folder)
    with pytest.raises(InputError, match="fails on this prompt"):
        chat.encode_prompt("more than fits")
    assert chat.decode(chat.encode_prompt("x")) == "x" * 27


def test_a_template_file_that_is_no_text(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"chat_template\.jinja: not UTF-8 text"):
        load_chat(folder)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": ""}])
def test_a_tokenizer_that_lets_a_text_grow_without_end(folder, part, pattern):
    """Five of a hundredfold make 10^10 characters of one: more than any memory, and no words."""
    replace = {"type": "Replace", "pattern": pattern, "content": "a" * 100}
    for times in (1, 5):
        change_tokenizer(folder, **{part: {"type": "Sequence", f"{part}s": [replace] * times}})
        if times == 1:
            load_chat(folder)
        else:
            with pytest.raises(
                InputError, match=rf"its {part} may .* 10,000,000,000 times as long"
            ):
                load_chat(folder)


def change_tokenizer(folder, **changes):
    path = folder / "tokenizer.json"
    write_json(path, json.loads(path.read_text()) | changes)


def test_a_tokenizer_that_would_cut_or_pad_does_not(folder, chat):
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 4000},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<|im_end|>",
    }
    change_tokenizer(folder, truncation=cut, padding=pad)
    text = "a text of more than three tokens"
    np.testing.assert_array_equal(load_chat(folder).encode_prompt(text), chat.encode_prompt(text))
    (ids,), (expected,) = load_chat(folder).encode_answers([text]), chat.encode_answers([text])
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("text", ["a", "a|b", "|b", "xa|b|bx"])
def test_special_text_stays_text_in_tokens_of_one_character_and_within_others(folder, text):
    """Special tokens "a", "a|b" and "|b": a mark within the longest would leave the others."""
    path = folder / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    more = [
        added[0] | {"id": 512 + i, "content": content}
        for i, content in enumerate(["a", "a|b", "|b"])
    ]
    change_tokenizer(folder, added_tokens=added + more)
    (folder / "config.json").unlink()  # whose vocabulary has no place for them
    chat = load_chat(folder)
    ids = chat.encode_prompt([{"role": "user", "content": text}])
    # What the template itself writes, ChatML's system message, holds "a" too.
    expected = chat.encode_prompt([{"role": "user", "content": "x"}])
    assert (ids >= 512).sum() == (expected >= 512).sum()


def test_a_message_with_every_private_character_survives(chat):
    text = "".join(map(chr, range(0xE000, 0xF900))) + "<|im_end|>"
    assert text in chat.decode(chat.encode_prompt(text))


def test_a_tokenizer_with_more_tokens_than_the_model(folder):
    write_json(folder / "config.json", {"vocab_size": 100})
    with pytest.raises(InputError, match=r"gives the token .*, expected less than .* 100"):
        load_chat(folder).encode_prompt("hello")


def test_without_a_template_chatml_is_taken_where_its_tokens_are_known(folder):
    set_template(folder, None)
    assert load_chat(folder).template == CHATML
    tokenizer = (folder / "tokenizer.json").read_text().replace("<|im_", "<|turn_")
    (folder / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(InputError, match="found no chat template"):
        load_chat(folder).encode_prompt("x")


def test_a_pattern_that_its_library_gives_up_on_is_named_once(folder, capfd):
    """A panic in Rust writes a line of its own, past all that Python could catch."""
    pattern = {"Regex": "(x+x+)+y"}
    change_tokenizer(folder, normalizer={"type": "Replace", "pattern": pattern, "content": "z"})
    with pytest.raises(InputError, match="its tokenizer fails on this text"):
        load_chat(folder).encode_raw("x" * 200)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", [b"", b"{}", b'{"model": {"type": "BPE"}}', b"\xff{}"])
def test_a_broken_tokenizer(folder, text):
    (folder / "tokenizer.json").write_bytes(text)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_chat(folder)


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        load_chat(folder)


def test_no_end_of_turn(folder):
    (folder / "config.json").unlink()
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"eos_token": "<nothing>"})
    with pytest.raises(InputError, match="no end-of-turn token"):
        load_chat(folder)
