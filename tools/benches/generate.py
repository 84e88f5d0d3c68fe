"""`generate`: tokens a second, beside llama.cpp in float32."""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from benches.flags import add_names, add_number
from benches.names import matmul_of
from benches.turns import Bench, Engine, Result, in_turn, print_table
from benches.work import untrained

from minibule.errors import InputError
from minibule.export import export
from minibule.generate.decode import Wanted, generate
from minibule.generate.sampling import Sampling
from minibule.machine.matmul import TERMS
from minibule.machine.threads import peak_memory_gb
from minibule.models.chat_files import load_chat
from minibule.models.exports import GgufExport
from minibule.models.load import load_model


def generation_rates(args: argparse.Namespace, tokens: Callable[..., list[float]]) -> Result:
    """tokens(sequences, prompt, new) gives the moments of the start and of each new token.

    minibule's takes a temperature, too.
    """
    tokens(1, args.prompt, 2)  # not counted
    start, first = tokens(1, args.prompt, 1)
    alone = np.diff(tokens(1, args.context, args.new)[1:])
    together = np.diff(tokens(args.batch, args.context, args.new_batch)[1:])
    sampled = {}
    if args.engine.startswith("minibule"):
        at_once = [
            float(np.diff(tokens(args.sampled, args.context, args.new_batch, t)[1:]).mean())
            for t in (0.0, 1.0)
        ]
        sampled = {
            f"{args.sampled} at once": args.sampled / at_once[0],
            f"{args.sampled} sampled": args.sampled / at_once[1],
            "sampled / greedy": at_once[0] / at_once[1],
        }
    return sampled | {
        "prefill": args.prompt / (first - start),
        "decode": 1 / float(alone.mean()),
        f"{args.batch} at once": args.batch / float(together.mean()),
        f"{args.batch} at once / decode": args.batch * float(alone.mean() / together.mean()),
        "peak GB": peak_memory_gb(),
    }


def generate_minibule(args: argparse.Namespace) -> Result:
    model = load_model(args.model, matmul=matmul_of(args.engine))
    if args.engine == "minibule-lora":
        model.adapter = untrained(model.config)
    rng = np.random.default_rng(0)

    def tokens(sequences: int, prompt: int, new: int, temperature: float = 0.0) -> list[float]:
        prompts = [rng.integers(0, model.config.vocab_size, prompt) for _ in range(sequences)]
        moments = [time.perf_counter()]
        generate(
            model,
            prompts,
            Wanted(frozenset(), new, Sampling(temperature)),
            on_token=lambda sequence, _: sequence or moments.append(time.perf_counter()),
        )
        return moments

    return generation_rates(args, tokens)


def generate_llama_cpp(args: argparse.Namespace) -> Result:
    """llama.cpp through its own C interface: float32 weights, keys and values, greedy."""
    import llama_cpp as cpp

    cpp.llama_backend_init()
    model_params = cpp.llama_model_default_params()
    model_params.use_mmap = False
    model = cpp.llama_model_load_from_file(str(args.gguf).encode(), model_params)
    vocab = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    rng = np.random.default_rng(0)

    def tokens(sequences: int, prompt: int, new: int) -> list[float]:
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * (prompt + new), sequences
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = os.cpu_count() or 1
        params.type_k = params.type_v = cpp.GGML_TYPE_F32
        params.flash_attn_type = int(args.engine == "llama.cpp-flash")
        context = cpp.llama_init_from_model(model, params)
        batch = cpp.llama_batch_init(max(prompt, sequences), 0, sequences)

        def decode(entries: Sequence[tuple[int, int, int, bool]]) -> list[int]:
            """Run (token, position, sequence, wanted) entries; the next token of each wanted."""
            batch.n_tokens = len(entries)
            for i, (token, position, sequence, wanted) in enumerate(entries):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if cpp.llama_decode(context, batch):
                raise InputError("llama.cpp could not decode.")
            logits = (
                cpp.llama_get_logits_ith(context, i) for i, entry in enumerate(entries) if entry[3]
            )
            return [int(np.ctypeslib.as_array(z, (vocab,)).argmax()) for z in logits]

        prompts = rng.integers(0, vocab, (sequences, prompt)).tolist()
        moments, last = [time.perf_counter()], []
        for s, ids in enumerate(prompts):
            last += decode([(token, i, s, i + 1 == prompt) for i, token in enumerate(ids)])
        moments.append(time.perf_counter())
        for i in range(new - 1):
            last = decode([(token, prompt + i, s, True) for s, token in enumerate(last)])
            moments.append(time.perf_counter())
        cpp.llama_batch_free(batch)
        cpp.llama_free(context)
        return moments

    return generation_rates(args, tokens)


ENGINES: dict[str, Engine] = {
    "llama.cpp": generate_llama_cpp,
    "llama.cpp-flash": generate_llama_cpp,
    "minibule": generate_minibule,
    "minibule-lora": generate_minibule,
    **{f"minibule-{mode}": generate_minibule for mode in TERMS},
}


def needed_by(engine: str) -> str:
    """The module that an engine of `generate` is made of."""
    if matmul_of(engine) != "float32":
        return "numkong"
    return "minibule" if engine.startswith("minibule") else "llama_cpp"


def bench_generate(args: argparse.Namespace, argv: list[str]) -> None:
    with TemporaryDirectory() as folder:
        gguf = Path(folder) / "f32.gguf"
        if any(name.startswith("llama.cpp") for name in args.engines):
            export(load_model(args.model), load_chat(args.model), GgufExport("f32"), gguf)
        results = in_turn(args.engines, [*argv, "--gguf", str(gguf)], args.rounds)
    many = f"{args.batch} at once"
    sampled = (f"{args.sampled} at once", f"{args.sampled} sampled", "sampled / greedy")
    columns = ("prefill", "decode", many, f"{many} / decode", *sampled, "peak GB")
    against = {name: (args.engines[0], name) for name in ("prefill", "decode", many)}
    print_table(results, columns, against)
    print(
        f"\ntokens/s: prefill of {args.prompt} tokens; decode of {args.new} after {args.context}, "
        f"and of {args.new_batch} of each of {args.batch} or {args.sampled} sequences at once, "
        "greedily or sampled at temperature 1"
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    there = [name for name in ENGINES if find_spec(needed_by(name))]
    add_names(parser, "--engines", ENGINES, there)
    add_number(parser, "--prompt", 512, "tokens prefilled")
    add_number(parser, "--context", 128, "tokens before those decoded")
    add_number(parser, "--new", 64, "tokens decoded of one sequence", least=2)
    add_number(parser, "--new-batch", 16, "tokens decoded of each of a batch", least=2)
    add_number(parser, "--batch", 16, "sequences of a batch")
    add_number(parser, "--sampled", 64, "sequences of a batch that is sampled, too")
    parser.add_argument("--gguf", type=Path, help=argparse.SUPPRESS)


GENERATE = Bench(ENGINES, bench_generate, add_flags)
