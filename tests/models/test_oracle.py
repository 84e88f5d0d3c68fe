"""minibule against torch, transformers and PEFT themselves. Needs the extra `oracle`."""

import copy
import dataclasses

import numpy as np
import pytest
from broken import change_json
from helpers import random_adapter, random_examples, random_llama

pytest.importorskip("torch", reason="needs pip install '.[oracle]'")
pytest.importorskip("transformers", reason="needs pip install '.[oracle]'")
pytest.importorskip("peft", reason="needs pip install '.[oracle]'")

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch_reference import step_gradients
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM

from minibule.core.complement import complement_loss
from minibule.core.fused import TargetLoss
from minibule.core.objective import OBJECTIVES
from minibule.core.optim import AdamW
from minibule.core.shapes import LlamaConfig
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.files import write_json
from minibule.models.huggingface import config_json
from minibule.models.load import load_model
from minibule.models.peft import load_adapter, save_adapter
from minibule.models.save import save_model, save_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles' own deprecations

SMALL = LlamaConfig(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=40,
    vocab_size=37,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)
SMOLLM2_360M = LlamaConfig(
    hidden_size=960,
    num_hidden_layers=32,
    num_attention_heads=15,
    num_key_value_heads=5,
    head_dim=64,
    intermediate_size=2560,
    vocab_size=49152,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
)


def torch_model(model):
    """transformers' Llama with the same weights."""
    config = TransformersConfig(**config_json(model.config, "F32"))
    with torch.device("meta"):
        other = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(w) for name, w in model.weights.items()}
    missing, unexpected = other.load_state_dict(state, strict=False, assign=True)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    other.tie_weights()
    other.model.rotary_emb = type(other.model.rotary_emb)(config)  # was made without numbers
    return other.eval()


def peft_model(model):
    """The same with model.adapter's numbers on it."""
    adapter = model.adapter
    config = PeftConfig(
        r=adapter.config.r,
        lora_alpha=adapter.config.lora_alpha,
        target_modules=list(adapter.config.modules),
        use_rslora=adapter.config.use_rslora,
        task_type="CAUSAL_LM",
    )
    other = get_peft_model(torch_model(model), config)
    for name, p in torch_params(other).items():
        p.data = torch.from_numpy(adapter.params[name].copy())
    return other


def torch_params(other):
    """PEFT's trained parameters under minibule's names."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in other.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize("config", [SMALL, SMOLLM2_360M], ids=["small", "smollm2-360m"])
def test_logits_are_those_of_transformers(config):
    model = random_llama(config, std=0.3 if config is SMALL else 0.04)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 60)
    ours = model.logits(ids)
    with torch.no_grad():
        theirs = torch_model(model)(torch.from_numpy(ids)[None]).logits[0].numpy()
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"logits against transformers, {config.num_hidden_layers} layers: {error:.1e} of scale")
    assert error <= 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_adapter_gradients_are_those_of_autograd(objective, rslora):
    model = random_llama(SMALL)
    model.adapter = random_adapter(SMALL, rslora=rslora)
    other, examples = peft_model(model), random_examples()
    loss = step_gradients(other, examples, objective)
    grads, metrics, _ = gradients(model, examples, TargetLoss(objective), 10**6)
    worst = 0.0
    for name, p in torch_params(other).items():
        theirs = p.grad.numpy()
        worst = max(worst, np.abs(grads[name] - theirs).max() / np.abs(theirs).max())
    print(f"adapter gradients against autograd: {worst:.1e} relative")
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert worst <= 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_ten_steps_follow_torch_and_peft(objective):
    """From one start adapter, AdamW for ten steps over other records each: the same losses."""
    model = random_llama(SMALL)
    model.adapter = random_adapter(SMALL)
    other = peft_model(model)
    decay = 0.01
    torch_optimiser = torch.optim.AdamW(torch_params(other).values(), lr=1e-2, weight_decay=decay)
    optimiser = AdamW(model.adapter.params, decay)
    ours, theirs = [], []
    for step in range(10):
        examples = random_examples(seed=step % 3)
        torch_optimiser.zero_grad()
        loss = step_gradients(other, examples, objective)
        torch_optimiser.step()
        theirs.append(loss)
        grads, metrics, _ = gradients(model, examples, TargetLoss(objective), 20)
        optimiser.step(grads, 1e-2)
        ours.append(metrics["loss"])
    error = np.abs(np.divide(ours, theirs) - 1).max()
    print(f"ten-step loss trace against torch + PEFT: {error:.1e} relative")
    assert error <= 1e-3
    assert abs(theirs[-1] - theirs[0]) > 1e-2 * theirs[0]  # something was learnt


def test_dense_loss_is_torch_autograd():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 9))
    counts = rng.integers(0, 3, (5, 9)) + np.eye(5, 9, dtype=int)
    z = torch.tensor(logits, requires_grad=True)
    v = torch.tensor(counts, dtype=torch.float64)
    T = v.sum(-1, keepdim=True)
    P = (T - v + 1) / (T - v + 1).sum(-1, keepdim=True)
    logp = z.log_softmax(-1)
    kl = torch.nn.functional.kl_div(logp, P, reduction="none").sum(-1)
    loss = (0.7 * kl - 0.3 * (v / T * torch.log1p(-logp.exp())).sum(-1)).mean()
    loss.backward()
    value, dlogits = complement_loss(logits, counts)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(dlogits, z.grad.numpy(), rtol=1e-10, atol=1e-16)


def write_model(model, folder):
    folder.mkdir()
    write_json(folder / "config.json", config_json(model.config, "F32"))
    save_weights(model, folder, "F32")
    return folder


@pytest.mark.parametrize("layers", [range(3), range(2, 3)], ids=["all-layers", "last-layer"])
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_peft_reads_our_adapter(tmp_path, layers, rslora):
    model = random_llama(SMALL)
    model.adapter = random_adapter(SMALL, layers=layers, rslora=rslora)
    save_adapter(model.adapter, model.config, tmp_path / "adapter", "somewhere")
    other = PeftModel.from_pretrained(torch_model(model), tmp_path / "adapter").eval()
    ids = np.arange(20)
    with torch.no_grad():
        theirs = other(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(model.logits(ids), theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": ["up_proj", "k_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*\.(1|2)\.self_attn\.(q|o)_proj", "use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {
            "target_modules": ["q_proj", "model.layers.2.mlp.up_proj"],
            "layers_to_transform": [0],
            "layers_pattern": "layers",
        },
        {
            "target_modules": ["q_proj", "gate_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {"gate_proj": 3},
        },
    ],
    ids=lambda o: "+".join(o),
)
def test_we_read_the_adapter_of_peft(tmp_path, options):
    model = random_llama(SMALL)
    config = PeftConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **options)
    other = get_peft_model(torch_model(model), config).eval()
    for p in torch_params(other).values():
        torch.nn.init.normal_(p, std=0.2)
    other.save_pretrained(tmp_path / "adapter")
    ids = np.arange(20)
    with torch.no_grad():
        theirs = other(torch.from_numpy(ids)[None]).logits[0].numpy()
    model.adapter = load_adapter(tmp_path / "adapter", SMALL)
    np.testing.assert_allclose(model.logits(ids), theirs, atol=1e-4 * np.abs(theirs).max())


LINEAR = {"rope_type": "linear", "factor": 2.0}
# Changes of a config.json that transformers computes with, and whether minibule does too.
CONFIGS = [
    ({}, True),
    ({"rope_theta": 123.0}, True),
    ({"rope_theta": 123.0, "rope_parameters": {"rope_theta": 7e5}}, True),
    ({"rope_theta": 123.0, "rope_parameters": {"rope_type": "default"}}, True),
    ({"rope_theta": "absent", "rope_parameters": {"rope_theta": 7e5}}, True),
    ({"rope_theta": "absent", "rope_scaling": "absent"}, True),
    ({"rope_scaling": {"rope_theta": 99.0}, "rope_parameters": {"rope_theta": 7e5}}, True),
    ({"rope_scaling": {"type": "default"}, "rope_parameters": LINEAR}, True),
    ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e5}}, True),
    ({"head_dim": None, "num_key_value_heads": 2}, True),
    ({"max_position_embeddings": "absent", "pretraining_tp": 2}, True),
    ({"transformers_version": "4.40.0", "torch_dtype": "float32", "pad_token_id": 3}, True),
    ({"rope_parameters": LINEAR}, False),
    ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}}, False),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, False),
    ({"hidden_act": "gelu"}, False),
    ({"is_causal": False}, False),
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("changes", "computed"), CONFIGS, ids=str)
def test_a_config_is_computed_as_by_transformers_or_refused(tmp_path, changes, computed, tied):
    """With weights of both, a head and an embedding, whether config.json ties them or not."""
    model = random_llama(dataclasses.replace(SMALL, tie_word_embeddings=False))
    folder = write_model(model, tmp_path / "model")
    plain = transformers_logits(folder)
    change_json(folder / "config.json", **changes, tie_word_embeddings=tied)
    theirs = transformers_logits(folder)
    if computed:
        ours = load_model(folder).logits(IDS)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    else:
        assert np.abs(theirs - plain).max() > 1e-3 * np.abs(theirs).max()  # rightly so
        with pytest.raises(InputError, match="minibule computes only"):
            load_model(folder)


IDS = np.arange(20)


def transformers_logits(folder):
    other = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return other(torch.from_numpy(IDS)[None]).logits[0].numpy()


# What PEFT may be told of how an adapter begins, and whether its base stays as it is.
STARTS = {
    True: True,
    False: True,
    "gaussian": True,
    "eva": True,
    "orthogonal": True,
    "pissa": False,
    "pissa_niter_2": False,
    "olora": False,
}


@pytest.mark.parametrize(("start", "computed"), STARTS.items(), ids=str)
def test_an_adapter_is_computed_as_by_peft_or_refused(tmp_path, start, computed):
    model = random_llama(SMALL)
    plain = load_logits(model, tmp_path / "plain", True)
    theirs = load_logits(model, tmp_path / "adapter", start)
    changed = np.abs(theirs - plain).max() > 1e-3 * np.abs(plain).max()
    assert changed == (not computed)
    if computed:
        model.adapter = load_adapter(tmp_path / "adapter", SMALL)
        np.testing.assert_allclose(model.logits(IDS), theirs, atol=1e-4 * np.abs(theirs).max())
    else:
        with pytest.raises(InputError, match=f"init_lora_weights: found '{start}'"):
            load_adapter(tmp_path / "adapter", SMALL)


def load_logits(model, folder, start):
    """PEFT's logits with one and the same adapter, whose settings name its start."""
    save_adapter(random_adapter(SMALL, r=4), SMALL, folder, "somewhere")
    change_json(folder / "adapter_config.json", init_lora_weights=start)
    other = PeftModel.from_pretrained(torch_model(copy.deepcopy(model)), folder).eval()
    with torch.no_grad():
        return other(torch.from_numpy(IDS)[None]).logits[0].numpy()


def test_transformers_reads_our_merged_model(tmp_path):
    model = random_llama(SMALL)
    source = write_model(model, tmp_path / "base")
    model.adapter = random_adapter(SMALL)
    save_model(model, tmp_path / "merged", source)
    other = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = np.arange(20)
    with torch.no_grad():
        theirs = other(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(model.logits(ids), theirs, atol=1e-4 * np.abs(theirs).max())
    again = load_model(tmp_path / "merged")
    np.testing.assert_allclose(again.logits(ids), theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["50MB", "10KB"], ids=["one file", "shards"])
def test_we_read_what_transformers_writes(tmp_path, dtype, shard):
    other = torch_model(random_llama(SMALL)).to(dtype)
    other.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == (shard == "10KB")
    model = load_model(tmp_path / "theirs")
    ids = np.arange(20)
    other = LlamaForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = other(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(model.logits(ids), theirs, atol=1e-4 * np.abs(theirs).max())
