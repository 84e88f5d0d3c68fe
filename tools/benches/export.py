"""`export`: seconds and memory of each format."""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benches.flags import add_names
from benches.turns import Bench, Result, in_turn, print_table
from benches.work import untrained

from minibule.export import export
from minibule.machine.threads import memory_gb, peak_memory_gb
from minibule.models.chat_files import load_chat
from minibule.models.exports import FORMS
from minibule.models.load import load_model


def export_one(args: argparse.Namespace) -> Result:
    form, _, dtype = args.engine.partition("-")
    model, chat = load_model(args.model), load_chat(args.model)
    model.adapter = untrained(model.config)
    loaded = memory_gb()
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        started = time.perf_counter()
        export(model, chat, FORMS[form](dtype), output)
        seconds = time.perf_counter() - started
        files = [output] if output.is_file() else list(output.iterdir())
        written = sum(file.stat().st_size for file in files) / 1e9
    return {"seconds": seconds, "GB": written, "loaded GB": loaded, "peak GB": peak_memory_gb()}


ENGINES = dict.fromkeys(("gguf-f32", "gguf-f16", "gguf-q8_0", "hf-f32", "hf-bf16"), export_one)


def bench_export(args: argparse.Namespace, argv: list[str]) -> None:
    results = in_turn(args.engines, argv, args.rounds)
    print_table(results, ("seconds", "GB", "loaded GB", "peak GB"), {})
    print(
        "\nseconds of merging a rank-16 adapter and writing; GB of the file; memory of the process"
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "--engines", ENGINES, ENGINES)


EXPORT = Bench(ENGINES, bench_export, add_flags)
