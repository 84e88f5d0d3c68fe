"""Make the embedded model and its records, from nothing but a seed: weights/tiny/.

    python tools/make_tiny.py --output weights/tiny

1. A small byte-level BPE is trained on samples of the world (`world.py`).
2. A Llama of SmolLM2's architecture, 0.85 million parameters, is pretrained on answers sampled
   from the world, by minibule's own full backward pass.
3. For each training prompt the pretrained base answers several times at temperature 1; the world's
   judge keeps what it rejects as the record and throws the accepted answers away. Held-out prompts
   are never asked.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import world
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from minibule.core import ops
from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.llama import Llama, backward, forward_batch
from minibule.core.optim import AdamW, clip_gradients
from minibule.core.shapes import LlamaConfig
from minibule.files import write_json
from minibule.generate.decode import Wanted, generate
from minibule.generate.sampling import Sampling
from minibule.machine.matrix import Array
from minibule.models.chat_files import load_chat
from minibule.models.huggingface import config_json
from minibule.models.load import load_model
from minibule.models.save import save_weights
from minibule.program import run
from minibule.text.chat import CHATML, SYSTEM_MESSAGE, Chat

CONFIG = LlamaConfig(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=384,
    vocab_size=512,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
)
DTYPE = "BF16"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2, as in SmolLM2

STEPS = 2500
PROMPTS_A_STEP = 48
ANSWERS_A_PROMPT = 6
PEAK_LR = 3e-3
ROUNDS = 8  # answers sampled of the base for each record


def make_tokenizer(rng: np.random.Generator) -> Tokenizer:
    """A byte-level BPE of 512 tokens, split like SmolLM2's: every digit by itself."""
    texts = [SYSTEM_MESSAGE, "system\n", "user\n", "assistant\n"] * 100
    for prompt in world.prompts():
        texts.append(f"user\n{prompt.text}")
        texts += [world.sample(prompt, rng) for _ in range(ANSWERS_A_PROMPT)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer) -> None:
    """Everything of a Hugging Face folder but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    endoftext, im_start, im_end = SPECIAL
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": im_start,
            "eos_token": im_end,
            "pad_token": im_end,
            "unk_token": endoftext,
            "chat_template": CHATML,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG.max_position_embeddings,
            "tokenizer_class": "GPT2Tokenizer",
        },
    )
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    write_json(folder / "generation_config.json", ids)
    write_json(folder / "config.json", config_json(CONFIG, DTYPE) | ids)


def initial_weights(rng: np.random.Generator) -> dict[str, Array]:
    """Normal(0, 0.02); what is added to the residual stream shrinks by sqrt(2 layers); norms 1.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    residual = ("o_proj.weight", "down_proj.weight")
    weights = {}
    for name, shape in CONFIG.tensor_shapes().items():
        std = 0.02 / (math.sqrt(2 * CONFIG.num_hidden_layers) if name.endswith(residual) else 1)
        array = np.ones(shape) if name.endswith("norm.weight") else rng.normal(0, std, shape)
        weights[name] = array.astype(np.float32)
    return weights


def pretrain(chat: Chat, rng: np.random.Generator, steps: int) -> Llama:
    """A model that answers as the world does: cross-entropy on sampled answers."""
    model = Llama(CONFIG, initial_weights(rng))
    optimiser = AdamW(model.weights, weight_decay=0.0)
    prompts = world.prompts()
    encoded = {prompt.text: chat.encode_prompt(prompt.text) for prompt in prompts}
    bar = tqdm(range(steps), desc="pretraining")
    for step in bar:
        examples = []
        for i in rng.choice(len(prompts), PROMPTS_A_STEP, replace=False):
            texts = [world.sample(prompts[i], rng) for _ in range(ANSWERS_A_PROMPT)]
            answers = [np.append(ids, chat.end_of_turn) for ids in chat.encode_answers(texts)]
            counts = (1,) * len(answers)
            examples.append(Example(encoded[prompts[i].text], tuple(answers), counts, len(answers)))
        loss, grads = language_model_gradients(model, examples)
        clip_gradients(grads, 1.0)
        warmup = min(1.0, (step + 1) / 100)
        optimiser.step(grads, PEAK_LR * warmup * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        bar.set_postfix_str(f"loss {loss:.4f}")
    return model


def language_model_gradients(
    model: Llama, examples: list[Example]
) -> tuple[float, dict[str, Array]]:
    """Mean cross-entropy of the answers' tokens, and the gradient of every weight."""
    (batch,) = pack(examples, "prefix", pass_tokens=10**9)
    rows = batch.rows
    hidden, cache = forward_batch(model.base, batch, keep=True)
    times = rows.entry_count.astype(int)
    row, target = rows.entry_row.repeat(times), rows.entry_id.repeat(times)
    logits, head_cache = ops.linear(hidden, model.head)
    loss, loss_cache = ops.cross_entropy(logits[row], target)
    dlogits = np.zeros_like(logits)
    np.add.at(dlogits, row, ops.cross_entropy_backward(loss_cache))
    dhidden, dhead = ops.linear_backward(dlogits, head_cache)
    grads = backward(dhidden, cache)
    grads["model.embed_tokens.weight"] += dhead  # the head is the embedding again
    return loss, grads


def sample_records(model: Llama, chat: Chat, prompts: list[world.Prompt], seed: int) -> list[dict]:
    """What the judge rejects of ROUNDS answers to each prompt, most often first."""
    answers = generate(
        model,
        [chat.encode_prompt(prompt.text) for prompt in prompts],
        Wanted(chat.stop, 48, Sampling(temperature=1.0, seed=seed), samples=ROUNDS),
    )
    records = []
    for prompt, samples in zip(prompts, answers, strict=True):
        texts = [chat.decode(ids) for ids in samples]
        rejected = [t for t in texts if t and world.judge(prompt, t) != world.ACCEPTED]
        distinct = sorted(set(rejected), key=lambda t: (-rejected.count(t), t))
        if distinct:
            records.append(
                {
                    "prompt": prompt.text,
                    "rejected_responses": distinct,
                    "rejection_counts": [rejected.count(t) for t in distinct],
                    "total_rounds": ROUNDS,
                }
            )
    return records


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"({STEPS})")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    write_folder(args.output, make_tokenizer(rng))
    chat = load_chat(args.output)
    model = pretrain(chat, rng, args.steps)
    save_weights(model, args.output, DTYPE)
    model = load_model(args.output)  # as it will be used: rounded to 16 bits

    train, heldout = world.split(world.prompts(), args.seed)
    records = sample_records(model, chat, train, args.seed)
    write_lines(args.output / "records.jsonl", records)
    write_lines(args.output / "heldout.jsonl", [world.heldout_row(p) for p in heldout])
    for name, part in (("questions", train), ("questions-test", heldout)):
        write_lines(args.output / f"{name}.jsonl", [world.question_row(p) for p in part])
    print(f"{args.output}: {len(records)} records, {len(heldout)} held-out prompts")


if __name__ == "__main__":
    run(main)
