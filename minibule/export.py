"""Write a model, with its adapter merged or the adapter alone, for other programs.

python -m minibule.export --model DIR --adapter DIR --format gguf --dtype q8_0 --output model.gguf
"""

from dataclasses import dataclass
from pathlib import Path

from minibule.core.llama import Llama
from minibule.files import check_new, embedded_folder, new_output
from minibule.models.chat_files import load_chat
from minibule.models.exports import FORMS, Export
from minibule.models.load import load_model
from minibule.models.named import MODEL_HELP
from minibule.program import run
from minibule.settings import Parser, add_flags, from_flags, setting
from minibule.text.chat import Chat


@dataclass(frozen=True)
class ExportConfig:
    """The settings of `python -m minibule.export`."""

    model: Path | None = setting(None, MODEL_HELP)
    adapter: Path | None = setting(None, "PEFT adapter folder to merge or convert")
    format: str = setting(
        "",
        "; ".join(f"{name} = {form.about}" for name, form in FORMS.items()),
        choices=tuple(FORMS),
        required=True,
    )
    dtype: str = setting(
        "",
        "type of the matrices: "
        + "; ".join(
            f"for {name} {', '.join(form.dtypes)} (default: {form.usual})"
            for name, form in FORMS.items()
        ),
    )
    output: Path = setting(Path(), "file or folder to write", required=True)


def export(model: Llama, chat: Chat, form: Export, output: Path) -> None:
    """Write `output`, which is new, in that form."""
    with new_output(output) as place:
        form.write(model, chat, place)


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.export",
        usage="%(prog)s --format FORM --output PATH [FLAGS]",
        description="Write a model for other programs.",
        examples=(
            "--adapter runs/tiny/adapter --format hf --output merged",
            "--adapter runs/tiny/adapter --format gguf-lora --output adapter.gguf",
            "--model smollm2-135m --format gguf --dtype q8_0 --output model.gguf",
        ),
    )
    add_flags(parser, ExportConfig)
    config = from_flags(ExportConfig, vars(parser.parse_args(argv)))
    check_new(config.output)
    kind = FORMS[config.format]
    form = kind(config.dtype or kind.usual)
    source = config.model or embedded_folder()
    model, chat = load_model(source, config.adapter), load_chat(source)
    export(model, chat, form, config.output)
    print(config.output)


if __name__ == "__main__":
    run(main)
