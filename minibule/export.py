"""Write a model, with its adapter merged or the adapter alone, for other programs.

python -m minibule.export --model DIR --adapter DIR --format gguf --dtype q8_0 --output model.gguf
"""

import argparse
from pathlib import Path

from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.files import embedded_folder, writing
from minibule.models.chat_files import load_chat
from minibule.models.gguf_write import export_gguf, export_gguf_lora
from minibule.models.huggingface import save_model
from minibule.models.load import load_model
from minibule.models.safetensors import TORCH_DTYPE
from minibule.program import run
from minibule.runs.settings import GGUF_TYPES
from minibule.text.chat import Chat

FORMATS = {
    "gguf": "the merged model, for llama.cpp",
    "gguf-lora": "the adapter alone, for llama.cpp's --lora",
    "hf": "the merged Hugging Face folder",
}
DTYPES = {
    "gguf": GGUF_TYPES,
    "gguf-lora": ("f32",),
    "hf": tuple(dtype.lower() for dtype in TORCH_DTYPE),
}
DEFAULT_DTYPE = {"gguf": "f16", "gguf-lora": "f32", "hf": "f32"}


def export(model: Llama, chat: Chat, form: str, dtype: str | None, output: Path) -> None:
    """Write `output` in one of FORMATS; dtype None takes the format's default."""
    dtype = dtype or DEFAULT_DTYPE[form]
    if dtype not in DTYPES[form]:
        raise InputError(f"--dtype {dtype}: {form} is written as one of {', '.join(DTYPES[form])}.")
    if form == "gguf":
        export_gguf(model, chat, output, dtype)
    elif form == "gguf-lora":
        export_gguf_lora(model, output)
    else:
        with writing(output):
            save_model(model, output, chat.source, dtype.upper())


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minibule.export",
        description="Write a model for other programs: "
        + "; ".join(f"{name} is {text}" for name, text in FORMATS.items())
        + ".",
    )
    parser.add_argument("--model", metavar="DIR|FILE", help="folder or GGUF (default: embedded)")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder to merge or convert")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--dtype",
        metavar="TYPE",
        help=f"of the matrices: for gguf {'|'.join(GGUF_TYPES)} (f16), for hf f32|f16|bf16 (f32)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PATH")
    args = parser.parse_args(argv)
    if args.format == "hf" and args.output.exists():
        raise InputError(f"--output {args.output}: exists already; expected a new folder.")
    source = args.model or embedded_folder()
    model, chat = load_model(source, args.adapter), load_chat(source)
    export(model, chat, args.format, args.dtype, args.output)
    print(args.output)


if __name__ == "__main__":
    run(main)
