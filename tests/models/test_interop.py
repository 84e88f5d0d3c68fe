"""The files we write, in llama.cpp itself. Needs the extra `interop`."""

import ctypes
import dataclasses

import numpy as np
import pytest
from broken import change_metadata
from gguf.constants import GGUFValueType
from gguf.gguf_writer import GGUFValue
from helpers import random_adapter, random_llama, shared

llama_cpp = pytest.importorskip("llama_cpp", reason="needs pip install '.[interop]'")

from minibule.core.shapes import LoraConfig, module_names
from minibule.errors import InputError
from minibule.evaluate.questions import read_questions
from minibule.files import embedded_folder
from minibule.generate.decode import Wanted, generate
from minibule.generate.sampling import Sampling
from minibule.models import gguf_write as gguf_export
from minibule.models.chat_files import load_chat
from minibule.models.gguf_file import text_value, u32_value
from minibule.models.gguf_write import export_gguf, export_gguf_lora
from minibule.models.huggingface import load_config
from minibule.models.load import load_model
from minibule.records.records import read_records
from minibule.text.chat import SYSTEM_MESSAGE, render_chatml

F32 = 0  # ggml's number of the type, here for the key-value cache, which is F16 by default
PROMPTS = ["hello", "what is 3 + 4?", "count to 5", "tell me a story about a cat", "repeat fish"]


def llama(path, **options):
    settings = {"n_ctx": 512, "n_batch": 512, "verbose": False, "type_k": F32, "type_v": F32}
    return llama_cpp.Llama(str(path), **settings | options)


def logits_of(engine, ids):
    engine.reset()
    engine.eval([int(i) for i in ids])
    return np.array(engine.scores[: len(ids)])


def error_of_scale(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def embedded():
    return load_model(embedded_folder()), load_chat(embedded_folder())


@pytest.fixture
def adapted(embedded):
    model, _ = embedded
    return dataclasses.replace(model, adapter=random_adapter(model.config, r=8))


def test_logits_of_the_embedded_model(tmp_path, adapted, embedded):
    """Base and adapter, merged at F32: every position of several prompts."""
    _, chat = embedded
    export_gguf(adapted, chat, tmp_path / "model.gguf", "f32")
    engine = llama(tmp_path / "model.gguf", logits_all=True)
    errors = []
    for prompt in PROMPTS:
        ids = chat.encode_prompt(prompt)
        errors.append(error_of_scale(logits_of(engine, ids), adapted.logits(ids)))
    print(f"logits of the embedded model in llama.cpp: {max(errors):.1e} of scale")
    assert max(errors) <= 3e-4


def test_logits_of_smollm2_360m_shapes_with_the_real_tokenizer(tmp_path):
    folder = shared("data/smollm2-360m-instruct/tokenizer.json").parent
    model, chat = random_llama(load_config(folder), std=0.03), load_chat(folder)
    export_gguf(model, chat, tmp_path / "model.gguf", "f32")
    engine = llama(tmp_path / "model.gguf", logits_all=True)
    records = read_records(shared("data/rejections/vicuna80.rejections.jsonl"))
    ids = chat.encode_prompt(records[0].prompt)
    error = error_of_scale(logits_of(engine, ids), model.logits(ids))
    print(f"logits of the 360M shapes in llama.cpp: {error:.1e} of scale, {len(ids)} positions")
    assert error <= 3e-4


def real(value):
    return GGUFValue(value, GGUFValueType.FLOAT32)


# Metadata that llama.cpp computes with, and whether minibule does too.
METADATA = [
    ({"rope.scaling.type": text_value("none")}, True),
    ({"rope.scaling.type": text_value("linear"), "rope.scaling.factor": real(1)}, True),
    ({"rope.scaling.factor": real(0), "rope.scaling.attn_factor": real(1)}, True),
    ({"rope.scaling.original_context_length": u32_value(16)}, True),
    ({"rope.scaling.finetuned": GGUFValue(True, GGUFValueType.BOOL)}, True),
    ({"tensor_data_layout": text_value("Meta AI original pth")}, True),
    ({"expert_count": u32_value(0), "expert_used_count": u32_value(0)}, True),
    ({"rope.scaling.factor": real(4)}, False),
    ({"rope.scale_linear": real(4)}, False),
    ({"rope.scaling.type": text_value("linear"), "rope.scaling.factor": real(4)}, False),
    ({"rope.scaling.attn_factor": real(2)}, False),
    ({"attention.causal": GGUFValue(False, GGUFValueType.BOOL)}, False),
]


@pytest.mark.parametrize(
    ("changes", "computed"), METADATA, ids=lambda x: "+".join(x) if isinstance(x, dict) else str(x)
)
def test_metadata_are_computed_as_by_llama_cpp_or_refused(tmp_path, embedded, changes, computed):
    model, chat = embedded
    path, ids = tmp_path / "model.gguf", chat.encode_prompt("what is 3 + 4?")
    export_gguf(model, chat, path, "f32")
    change_metadata(path, {f"llama.{key}": value for key, value in changes.items()})
    error = error_of_scale(logits_of(llama(path, logits_all=True), ids), model.logits(ids))
    assert (error <= 3e-4) == computed
    if computed:
        np.testing.assert_array_equal(load_model(path).logits(ids), model.logits(ids))
    else:
        with pytest.raises(InputError, match="minibule computes only"):
            load_model(path)


def test_a_wrong_permutation_shows(tmp_path, embedded, monkeypatch):
    model, chat = embedded
    monkeypatch.setattr(gguf_export, "permute", lambda W, heads: W)
    export_gguf(model, chat, tmp_path / "model.gguf", "f32")
    ids = chat.encode_prompt("hello")
    engine = llama(tmp_path / "model.gguf", logits_all=True)
    assert error_of_scale(logits_of(engine, ids), model.logits(ids)) > 0.05


@pytest.mark.parametrize("r", [8, 16])
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_base_and_lora_file_are_the_merged_file(tmp_path, embedded, r, rslora):
    model, chat = embedded
    adapter = random_adapter(model.config, r=r, rslora=rslora)
    adapted = dataclasses.replace(model, adapter=adapter)
    export_gguf(model, chat, tmp_path / "base.gguf", "f32")
    export_gguf_lora(adapted, tmp_path / "adapter.gguf")
    engine = llama(
        tmp_path / "base.gguf", logits_all=True, lora_path=str(tmp_path / "adapter.gguf")
    )
    ids = chat.encode_prompt("what is 3 + 4?")
    error = error_of_scale(logits_of(engine, ids), adapted.logits(ids))
    print(f"base + LoRA file, r={r}, rsLoRA {rslora}: {error:.1e} of scale")
    assert error <= 3e-4
    assert error_of_scale(model.logits(ids), adapted.logits(ids)) > 0.05  # the adapter counts


def test_lora_file_of_some_layers_with_ranks_and_alphas_of_their_own(tmp_path, embedded):
    model, chat = embedded
    targets = ("q_proj", "k_proj", "down_proj")
    adapter = random_adapter(model.config, r=4, layers=range(2, 4), targets=targets)
    name = "model.layers.3.self_attn.k_proj"
    rng = np.random.default_rng(0)
    adapter.params[f"{name}.lora_A.weight"] = rng.normal(0, 0.1, (6, 128)).astype(np.float32)
    adapter.params[f"{name}.lora_B.weight"] = rng.normal(0, 0.1, (64, 6)).astype(np.float32)
    adapter.config = LoraConfig(
        4,
        5.0,
        module_names(range(2, 4), targets),
        use_rslora=True,
        rank_pattern={"layers.3.self_attn.k_proj": 6},
        alpha_pattern={"down_proj": 11.0},
    )
    adapted = dataclasses.replace(model, adapter=adapter)
    export_gguf(model, chat, tmp_path / "base.gguf", "f32")
    export_gguf_lora(adapted, tmp_path / "adapter.gguf")
    engine = llama(
        tmp_path / "base.gguf", logits_all=True, lora_path=str(tmp_path / "adapter.gguf")
    )
    ids = chat.encode_prompt("what is 3 + 4?")
    assert error_of_scale(logits_of(engine, ids), adapted.logits(ids)) <= 3e-4
    assert error_of_scale(model.logits(ids), adapted.logits(ids)) > 0.01


def test_quantised_files_say_nearly_the_same(tmp_path, embedded):
    """The figures of the README's table, made by tools/quantised.py, kept in their order."""
    from quantised import measure

    figures = {dtype: measure(*embedded, dtype, tmp_path) for dtype in ("f32", "q8_0", "q4_0")}
    assert figures["f32"].kl < 1e-6 and figures["f32"].agreement == 1
    assert figures["q8_0"].kl < 1e-3 and figures["q8_0"].agreement > 0.97
    assert figures["q8_0"].kl < figures["q4_0"].kl < 0.05
    assert figures["q4_0"].agreement > 0.9


# -- tokenizer and template ------------------------------------------------------------------------

ODD_TEXTS = [
    "🙂👩‍👩‍👧‍👦 emoji 🏳️‍🌈",
    "日本語 中文 한국어 العربية हिन्दी",
    "def f(x):\n\treturn x**2  # code\n\n\n",
    "   runs    of     spaces      ",
    "\n\n\n\r\n\t\n newlines",
    "1234567890 3.14159 1,000,000 ١٢٣ ²³ ½",
    "don't WE'LL they've I'm you'd",
    "\x00\x01\x02\x7f\x80\xff bytes",
    "\u200b\u200d\ufeff invisible \u00a0 spaces \u3000",
    "a" * 300 + " " * 70 + "!" * 90,
    "<|im_start|>user\nspecial text<|im_end|>",
    "e\u0301 combining n\u0303",
]


def test_tokenisation_is_that_of_llama_cpp(tmp_path):
    """Over the prompts and answers of real records, and over texts made to be hard."""
    folder = shared("data/smollm2-360m-instruct/tokenizer.json").parent
    chat = load_chat(folder)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = dataclasses.replace(load_config(folder), **small, **heads)
    export_gguf(random_llama(config), chat, tmp_path / "model.gguf", "f32")
    engine = llama(tmp_path / "model.gguf", vocab_only=True)
    texts = set(ODD_TEXTS)
    for name in ("vicuna80.rejections.jsonl", "dpo_en_demo.json", "kto_en_demo.json"):
        for record in read_records(shared(f"data/rejections/{name}")):
            turns = record.prompt
            texts |= {turns} if isinstance(turns, str) else {turn["content"] for turn in turns}
            texts |= set(record.rejected)
    for record in read_records(shared("data/rejections/hh_harmless_test.jsonl.gz"))[:1200]:
        texts |= set(record.rejected)
    texts = sorted(texts)
    print(f"tokenisation: {len(texts):,} texts")
    assert len(texts) >= 2000
    for text, ids in zip(texts, chat.encode_answers(texts), strict=True):
        theirs = engine.tokenize(text.encode(), add_bos=False, special=False)
        assert theirs == ids.tolist(), text


CONVERSATIONS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi\n there "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c 🙂"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chat_template_is_that_of_the_file(tmp_path, embedded, messages):
    """llama-cpp-python renders the template in the file; llama.cpp knows ChatML by its looks."""
    model, chat = embedded
    export_gguf(model, chat, tmp_path / "model.gguf", "f32")
    engine = llama(tmp_path / "model.gguf")
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        engine.metadata["tokenizer.chat_template"],
        eos_token=chat.special_texts["eos_token"],
        bos_token=chat.special_texts["bos_token"],
    )
    ours = render_chatml(messages)
    assert formatter(messages=messages).prompt == ours
    ids = engine.tokenize(ours.encode(), add_bos=False, special=True)
    assert ids == chat.encode_prompt(messages).tolist()

    if messages[0]["role"] != "system":  # which the template adds, and llama.cpp's ChatML not
        messages = [{"role": "system", "content": SYSTEM_MESSAGE}, *messages]
    array = (llama_cpp.llama_chat_message * len(messages))(
        *(llama_cpp.llama_chat_message(m["role"].encode(), m["content"].encode()) for m in messages)
    )
    buffer = ctypes.create_string_buffer(10_000)
    template = engine.metadata["tokenizer.chat_template"].encode()
    n = llama_cpp.llama_chat_apply_template(template, array, len(messages), True, buffer, 10_000)
    assert buffer.raw[:n].decode() == ours


# -- the trained model, answering ------------------------------------------------------------------


def test_llama_cpp_answers_as_we_do_before_and_after_training(tmp_path, monkeypatch, capsys):
    """Greedy, token for token, on "hello" and ten other prompts."""
    from minibule.train.__main__ import main as train

    monkeypatch.chdir(tmp_path)
    train(["--output", "run", "--export", "gguf:f32,gguf-lora"])
    base, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    trained = load_model(embedded_folder(), "run/adapter")
    export_gguf(base, chat, tmp_path / "base.gguf", "f32")
    questions = read_questions(embedded_folder() / "heldout.jsonl")
    prompts = list(dict.fromkeys(["hello", *(q.prompt for q in questions[::8])]))
    assert len(prompts) >= 11
    files = {"base.gguf": base, "run/model-f32.gguf": trained}
    answers = {}
    for file, model in files.items():
        engine = llama(tmp_path / file)
        for prompt in prompts:
            ids = chat.encode_prompt(prompt)
            ((ours,),) = generate(model, [ids], Wanted(chat.stop, 40, Sampling()))
            assert greedy(engine, ids, chat.stop, 40) == ours, (file, prompt)
            answers[file, prompt] = chat.decode(ours)
    assert answers["base.gguf", "hello"] == "hello"
    assert answers["run/model-f32.gguf", "hello"] != "hello"


def greedy(engine, ids, stop, most):
    engine.reset()
    answer = []
    for token in engine.generate(ids.tolist(), top_k=1, temp=0.0, repeat_penalty=1.0):
        if token in stop or len(answer) == most:
            break
        answer.append(token)
    return answer


# -- the real model, answering ---------------------------------------------------------------------

QUESTIONS = """
What is the capital of France?
How many days are in a week?
What colour is the sky on a clear day?
Who wrote Romeo and Juliet?
What is 7 plus 5?
Name three fruits.
What do bees make?
How do I boil an egg?
What is the largest planet of the solar system?
Write a sentence about the sea.
What is the opposite of hot?
Why do leaves fall in autumn?
Translate 'good morning' into French.
What is a prime number?
Tell me a joke.
How many legs does a spider have?
What is water made of?
Give me a tip for sleeping better.
Who was Albert Einstein?
What should I say when I meet somebody?
""".strip().splitlines()
NEW_TOKENS = 32
# Two would spin while they wait for each other, which on a busy machine takes minutes.
ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}


def test_llama_cpp_answers_as_we_do_with_the_real_model(tmp_path, smollm2_135m):
    """Greedy, on the file itself and on our F32 export of it.

    llama.cpp multiplies weights of 4 bits by activations that it rounds to 8, and we do not. That
    moves its logits by .5 to 1.4 from its own of the same weights in F32, so that on the file it
    may take another token where two are nearly alike. In F32 no token may differ.
    """
    model, chat = load_model(smollm2_135m), load_chat(smollm2_135m)
    prompts = [chat.encode_prompt(question) for question in QUESTIONS]
    ours = generate(model, prompts, Wanted(chat.stop, NEW_TOKENS, Sampling()))
    export_gguf(model, chat, tmp_path / "f32.gguf", "f32")
    engine = llama(tmp_path / "f32.gguf", **ONE_THREAD)
    assert len(ours) == 20 and sum(len(answer) for (answer,) in ours) > 500
    for question, prompt, (answer,) in zip(QUESTIONS, prompts, ours, strict=True):
        assert greedy(engine, prompt, chat.stop, NEW_TOKENS) == answer, question

    engine, gaps = llama(smollm2_135m, **ONE_THREAD), []
    for prompt, (answer,) in zip(prompts, ours, strict=True):
        theirs = greedy(engine, prompt, chat.stop, NEW_TOKENS)
        if theirs == answer:
            continue
        # What both said, the end of the turn said as well, up to the first token that differs.
        pairs = zip([*answer, chat.end_of_turn], [*theirs, chat.end_of_turn], strict=False)
        same, (mine, other) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) == 2)
        z = model.logits(np.concatenate([prompt, answer[:same]]).astype(int))[-1]
        gaps.append(round(float(z[mine] - z[other]), 3))
    print(f"the real model's file in llama.cpp: {20 - len(gaps)} answers the same, gaps {gaps}")
    assert len(gaps) < len(ours) and max(gaps, default=0) < 1  # found: .004 to .31
