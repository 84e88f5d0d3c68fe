"""Messages to text to token ids, and back.

SmolLM2's own chat template, ChatML, is built in. Another model's template is rendered by jinja2
in its sandbox, in a process of its own (`template.py`), where that optional package is installed.

What a user or an answer writes stays text: "<|im_end|>" inside a message is spelled out in
ordinary tokens and never becomes the control token. To that end the template is rendered once more
with every special token's text within a message hidden, a private character in the place of each of
its characters: what still is such a text then, the template itself put there.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import Decoder
from tokenizers.normalizers import Normalizer

from minibule.errors import InputError
from minibule.files import native_parser
from minibule.machine.matrix import Array
from minibule.records.values import Message
from minibule.text.template import Template

MOST_GROWTH = 1000  # of a text, before it is cut into tokens or after; beyond, no memory may do

SYSTEM_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# SmolLM2's chat_template, as its tokenizer_config.json has it. `Chat` renders it without jinja2.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def default_template(tokenizer: Tokenizer) -> str:
    """ChatML for a model that names no template but knows ChatML's tokens; else ""."""
    return CHATML if tokenizer.token_to_id("<|im_start|>") is not None else ""


MAX_TOKEN_TEXT = 1000  # characters; no token of the hub's has so many


def check_token_texts(texts: Iterable[str], source: Path) -> None:
    """InputError for a token as long as a file: what looks for it in texts would grow with it."""
    longest = max(map(len, texts), default=0)
    if longest > MAX_TOKEN_TEXT:
        raise InputError(
            f"{source}: found a token of {longest:,} characters, "
            f"expected {MAX_TOKEN_TEXT:,} at most."
        )


def render_chatml(messages: Sequence[Message]) -> str:
    """What CHATML makes of the messages, with the assistant's turn opened.

    >>> print(render_chatml([{"role": "user", "content": "hello"}]))
    <|im_start|>system
    You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
    <|im_start|>user
    hello<|im_end|>
    <|im_start|>assistant
    <BLANKLINE>
    """
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM_MESSAGE}, *messages]
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


class Chat:
    """A model's tokenizer and chat template.

    Attributes
    ----------
    tokenizer : tokenizers.Tokenizer
    template : str
        The jinja source of the chat template.
    stop : frozenset of int
        Tokens that end an answer.
    end_of_turn : int
        The one of them that the model says at the end of its own turn.
    special_texts : dict of str to str
        The tokenizer's named tokens: bos_token, eos_token, unk_token, pad_token, ...
    source : Path
        The folder or file they came from.
    vocab_size : int or None
        How many tokens the model knows, where that is known: a tokenizer may name more.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        special_texts: dict[str, str],
        eos: Sequence[int],
        source: Path,
        vocab_size: int | None = None,
    ) -> None:
        for part in ("normalizer", "decoder"):
            growth = _growth(getattr(tokenizer, part))
            if growth > MOST_GROWTH:
                raise InputError(
                    f"{source}: its {part} may make a text {growth:,} times as long, expected at "
                    f"most {MOST_GROWTH}."
                )
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # special tokens' text is text, see above
        self.tokenizer.no_truncation()  # a tokenizer.json may carry both; here all of a text counts
        self.tokenizer.no_padding()
        if getattr(self.tokenizer.model, "dropout", None):  # of merges: other tokens every time
            self.tokenizer.model.dropout = None
        self.template = template
        self.source = source
        self.vocab_size = vocab_size
        self.special_texts = special_texts
        self._special = {
            token.content: number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        texts = sorted(self._special, key=len, reverse=True)
        self._special_pattern = "|".join(map(re.escape, texts)) or r"(?!)"
        end_of_turn = self._special.get("<|im_end|>", eos[0])
        self.end_of_turn = end_of_turn
        self.stop = frozenset([*eos, end_of_turn])
        self._known([*self.stop])
        self._sandboxed: Template | None = None

    @property
    def special_ids(self) -> dict[str, int]:
        """The named tokens' ids."""
        ids = {name: self.tokenizer.token_to_id(text) for name, text in self.special_texts.items()}
        return {name: number for name, number in ids.items() if number is not None}

    def encode_prompt(self, prompt: str | Sequence[Message]) -> Array:
        """Token ids (P,) of a prompt, ready for the assistant's answer.

        A string is one user turn.
        """
        messages: Sequence[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        for message in messages:
            _check_text(message["role"] + message["content"])
        ids: list[int] = []
        for i, text in enumerate(self._rendered(messages)):
            ids += [self._special[text]] if i % 2 else self._encode(text)
        if not ids:
            raise InputError(f"{self.source}: its chat template makes nothing of this prompt.")
        return np.array(self._known(ids), np.int64)

    def encode_answers(self, answers: Sequence[str]) -> list[Array]:
        """Token ids of each answer, without the end-of-turn token.

        Rejecting that token too would teach the model never to stop.
        """
        with native_parser(f"{self.source}: its tokenizer fails on an answer"):
            encodings = self.tokenizer.encode_batch(list(answers), add_special_tokens=False)
        return [np.array(self._known(encoding.ids), np.int64) for encoding in encodings]

    def encode_raw(self, text: str) -> Array:
        """Token ids of a text that is no chat, with whatever the tokenizer puts around it."""
        _check_text(text)
        return np.array(self._known(self._encode(text, add_special_tokens=True)), np.int64)

    def decode(self, ids: Sequence[int] | Array) -> str:
        """The text of token ids, special tokens left out."""
        with native_parser(f"{self.source}: its tokenizer cannot decode"):
            return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """A token's text; where it is only a part of a character, its name in the vocabulary."""
        text = str(self.tokenizer.decode([token], skip_special_tokens=False))
        if text and "\ufffd" not in text:
            return text
        return str(self.tokenizer.id_to_token(token) or f"token {token}")

    def _encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        if not text:
            return []
        with native_parser(f"{self.source}: its tokenizer fails on this text"):
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _known(self, ids: list[int]) -> list[int]:
        """`ids`, all of which the model must have a row for."""
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            raise InputError(
                f"{self.source}: its tokenizer gives the token {max(ids)}, "
                f"expected less than the model's vocab_size of {self.vocab_size}."
            )
        return ids

    def _rendered(self, messages: Sequence[Message]) -> list[str]:
        """What the template makes of the messages: texts and, between them, control tokens' texts.

        InputError where it makes so much of a special token's text in a message that nobody can
        tell which of the control tokens are its own.
        """
        special = re.compile(f"({self._special_pattern})")
        plain = special.split(self._render(messages))
        used = "".join(m["role"] + m["content"] for m in messages)
        if not special.search(used):
            return plain
        characters = sorted(set("".join(special.findall(used))))
        taken = {*used, *self.template, *"".join(plain)}
        # Private characters, or, where they are all taken, others.
        free = (c for c in map(chr, range(0xE000, 0x110000)) if c not in taken)
        hide = {ord(c): next(free) for c in characters}
        shown = {ord(private): chr(c) for c, private in hide.items()}

        def hidden(text: str) -> str:
            return special.sub(lambda match: match.group().translate(hide), text)

        again: list[Message] = [
            {"role": hidden(m["role"]), "content": hidden(m["content"])} for m in messages
        ]
        found = [text.translate(shown) for text in special.split(self._render(again))]
        if "".join(found) == "".join(plain):
            return found
        # It looks into the texts (to encode, to cut them): then what it makes of them counts, if
        # none of it is a control token.
        if found[1::2] == plain[1::2]:
            return plain
        raise InputError(
            f"{self.source}: its chat template looks for the control tokens that stand as text in "
            f"this prompt. Expected a prompt without {', '.join(sorted({*special.findall(used)}))}."
        )

    def _render(self, messages: Sequence[Message]) -> str:
        if self.template == CHATML:
            return render_chatml(messages)
        if not self.template:
            raise InputError(
                f"{self.source}: found no chat template. Expected chat_template in "
                "tokenizer_config.json, the file chat_template.jinja, or a GGUF file's metadata."
            )
        try:
            if self._sandboxed is None:
                self._sandboxed = Template(self.template)
            return self._sandboxed.render(
                {"messages": list(messages), "add_generation_prompt": True, **self.special_texts}
            )
        except InputError as error:
            self._sandboxed = None  # it may have ended
            raise InputError(f"{self.source}: its chat template {error}") from None


def _growth(part: Normalizer | Decoder | None) -> int:
    """By how much what it puts in a character's place can make a text longer."""

    def growth(state: dict[str, Any]) -> int:
        inner = state.get("normalizers") or state.get("decoders") or []
        return math.prod(map(growth, inner)) * max(1, len(state.get("content") or ""))

    return growth(json.loads(part.__getstate__())) if part else 1


def _check_text(text: str) -> None:
    """InputError for half characters, as a command line that is not UTF-8 makes them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt: expected UTF-8 text ({error}).") from None
