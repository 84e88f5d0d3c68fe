"""Tokenizer and chat template, from a Hugging Face folder or a GGUF file."""

from pathlib import Path

from minibule.models.source import open_source
from minibule.text.chat import Chat


def load_chat(path: str | Path) -> Chat:
    """The tokenizer and chat template of a Hugging Face folder or a GGUF file.

    Raises
    ------
    InputError
        If the tokenizer is missing or broken, or no end-of-turn token is known.
    """
    return open_source(path).chat()
