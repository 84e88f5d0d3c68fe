"""The good files, of every kind that minibule reads: all small, and each as minibule writes it."""

import contextlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
from mutation.rows import rows

from minibule.core.llama import Llama
from minibule.core.lora import init_adapter
from minibule.core.optim import AdamW
from minibule.core.shapes import PROJECTIONS, LlamaConfig, LoraConfig, module_names
from minibule.files import embedded_folder, write_json
from minibule.models.chat_files import load_chat
from minibule.models.gguf_write import export_gguf
from minibule.models.huggingface import COMPANIONS, config_json
from minibule.models.peft import load_adapter, save_adapter
from minibule.models.save import save_weights
from minibule.runs.checkpoint import Identity, Progress, save_checkpoint
from minibule.runs.settings import resolve
from minibule.settings import to_toml
from minibule.text.chat import CHATML
from minibule.train.__main__ import main as train

CONFIG = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=512,  # the embedded tokenizer's
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)

RUN = Identity({"lr": 0.1, "targets": ["q_proj"]}, "model", "data")  # of the checkpoint


def random_model() -> Llama:
    rng = np.random.default_rng(0)
    shapes = CONFIG.tensor_shapes()
    weights = {n: rng.normal(len(s) == 1, 0.2, s).astype(np.float32) for n, s in shapes.items()}
    return Llama(CONFIG, weights)


def make_good_files(folder: Path) -> None:
    """A model in every form, an adapter, records, questions, settings: all small and all good."""
    model = random_model()
    source = embedded_folder()
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    for name, dtype in (("model", "BF16"), ("f32", "F32"), ("sharded", "F16"), ("template", "F16")):
        (folder / name).mkdir()
        for companion in COMPANIONS:
            if (source / companion).exists():
                (folder / name / companion).write_bytes((source / companion).read_bytes())
        write_json(folder / name / "config.json", config_json(CONFIG, dtype) | tokens)
        save_weights(model, folder / name, dtype)
    split_in_two(folder / "sharded")
    (folder / "template" / "chat_template.jinja").write_text("{# another #}" + CHATML)

    lora = LoraConfig(4, 8.0, module_names(range(2), PROJECTIONS), use_rslora=False)
    adapter = init_adapter(lora, CONFIG, seed=0)
    rng = np.random.default_rng(1)
    for name, p in adapter.params.items():
        if ".lora_B." in name:
            p[...] = rng.normal(0, 0.2, p.shape)
    save_adapter(adapter, CONFIG, folder / "adapter", "base")

    chat = load_chat(folder / "model")
    for dtype in ("f32", "bf16", "q8_0", "q4_0"):
        export_gguf(model, chat, folder / f"{dtype}.gguf", dtype)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows())
    for name in ("records.jsonl", "records.json", "records.jsonl.gz"):
        (folder / name).write_text(lines, encoding="utf-8")
    questions = (source / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    (folder / "heldout.jsonl").write_text("\n".join(questions), encoding="utf-8")
    (folder / "config.toml").write_text(to_toml(resolve({"model": "m"})), encoding="utf-8")
    if importlib.util.find_spec("pyarrow"):
        make_parquet(folder)
    optimiser = AdamW(load_adapter(folder / "adapter", CONFIG).params, 0.0)
    save_checkpoint(folder / "checkpoint", RUN, Progress(2, 0, 99, 1.0), optimiser, 1)
    make_run(folder)


def make_parquet(folder: Path) -> None:
    from pyarrow import Table, parquet

    for i, row in enumerate(row for row in rows()[:8] if "chosen" in row):
        parquet.write_table(Table.from_pylist([row, row]), folder / f"records-{i}.parquet")


def make_run(folder: Path) -> None:
    """RUN, the folder of a training run: two steps, with all that it measures before and after."""
    (folder / "few.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}?", "rejected": ["No.", "a"]}) + "\n" for i in range(4))
    )
    flags = [f"--{name}={folder / file}" for name, file in RUN_FILES.items()]
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        train([*flags, *RUN_FLAGS])
    (folder / "run" / KEPT).write_text("the user's own")
    (folder / "victim" / "folder").mkdir(parents=True)
    for name in ("file", "folder/file", "folder/config.toml", "folder/adapter_config.json"):
        (folder / "victim" / name).write_text("the user's own")


KEPT = "notes.txt"  # a file of the user's in the run's folder
RUN_FILES = {"model": "f32", "data": "few.jsonl", "heldout": "heldout.jsonl", "output": "run"}
RUN_FLAGS = (
    *("--steps=2", "--save-every=1", "--batch-size=2", "--threads=1", "--probe=hello"),
    *("--eval-fraction=0.5", "--export=none", "--lora-r=2"),
)


def split_in_two(folder: Path) -> None:
    """model.safetensors of a folder -> two shards and their index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"model-{k}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
