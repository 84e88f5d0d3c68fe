"""Every key that a model's or an adapter's description may have, and what becomes of it.

A key that is passed over in silence makes another model than its author trained: a scaled RoPE, a
bias, a base that the adapter's library would change first. So each key of each format is on one of
three lists, and what is on none is refused by name, with all else that is wrong.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr  # values of a damaged file may be as long as the file
from typing import Any

from minibule.core.shapes import LlamaConfig

# What a model's own description may claim. The deepest Llama has 126 layers; the shapes of so many
# as a damaged file may name would fill the memory. RoPE's base and RMSNorm's epsilon (1e4 to 1e7
# and 1e-5 or 1e-6 in every Llama) must leave float32 numbers.
MAX_LAYERS = 1000
ROPE_THETA = (1.0, 1e12)
RMS_NORM_EPS = (1e-12, 0.1)

# Metadata of a merged model's weights: the `fingerprint` of the adapter that is in them.
MERGED = "minibule.merged_adapter"


@dataclass(frozen=True)
class Keys:
    """The keys of one format.

    used     read, and checked where they are read
    values   key -> the only values with which a model is one that minibule computes; none at all:
             only without the key. What is null is as good as absent.
    free     change nothing of what the model computes
    own      how the keys of the model's own name space begin: others are somebody's notes
    """

    used: frozenset[str]
    values: Mapping[str, tuple[Any, ...]]
    free: frozenset[str]
    own: tuple[str, ...] = ("",)

    def problems(self, found: Mapping[str, Any], within: str = "") -> list[str]:
        """What is to be refused, a line each. `within` is put before the keys' names."""
        lines = []
        for key, value in found.items():
            if value is None or key in self.used or key in self.free:
                continue
            if key in self.values:
                if not any(_same(value, known) for known in self.values[key]):
                    expected = " or ".join(map(repr, self.values[key])) or "without it"
                    lines.append(
                        f"{within}{key}: found {repr(value)}, minibule computes only {expected}"
                    )
            elif key.startswith(self.own):
                lines.append(
                    f"{within}{key}: found {repr(value)}, but minibule does not know this key; "
                    "if it changes nothing of what the model computes, remove it"
                )
        return lines


def _same(value: Any, known: Any) -> bool:
    """1.0 is 1, but neither is True."""
    return isinstance(value, bool) == isinstance(known, bool) and bool(value == known)


def _words(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(texts).split())


# -- Hugging Face ----------------------------------------------------------------------------------

# Of answering, which newer models keep in generation_config.json.
_GENERATION = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p
"""

CONFIG_JSON = Keys(
    used=_words(
        "architectures eos_token_id rope_parameters rope_scaling",
        *(f.name for f in dataclasses.fields(LlamaConfig) if f.name != "tie_word_embeddings"),
    ),
    values={
        "model_type": ("llama",),
        "tie_word_embeddings": (True, False),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "bias": (False,),
        "attention_dropout": (0,),
        "is_causal": (True,),
        "sliding_window": (),
        "use_sliding_window": (False,),
        "rope_interleaved": (False,),
        "rope_traditional": (False,),
        "partial_rotary_factor": (1,),
        "pruned_heads": ({},),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (),
        "tie_encoder_decoder": (False,),
        "quantization_config": (),
        "quantization": (),
        "compression_config": (),
    },
    free=_words(
        # where it comes from, and in which type its numbers lie in the file
        """_name_or_path name_or_path _commit_hash auto_map transformers_version dtype torch_dtype
        transformers.js_config is_llama_config unsloth_fixed unsloth_version""",
        # its tokens by name; eos_token_id is used
        """bos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
        decoder_start_token_id tokenizer_class prefix""",
        # how it is computed or trained, and what else is handed out
        """use_cache pretraining_tp attn_implementation _attn_implementation
        _attn_implementation_autoset chunk_size_feed_forward gradient_checkpointing
        initializer_range is_decoder max_sequence_length output_attentions output_hidden_states
        return_dict tf_legacy_loss torchscript use_bfloat16""",
        # of a classifier
        "finetuning_task id2label label2id num_labels problem_type task_specific_params",
        _GENERATION,
    ),
)

# Of rope_scaling or rope_parameters.
ROPE = Keys(
    used=_words("rope_theta"),
    values={
        "rope_type": ("default",),
        "type": ("default",),
        "factor": (1,),
        "partial_rotary_factor": (1,),
    },
    free=frozenset(),
)

# The library that reads it computes with all of them; truncation and padding `Chat` switches off.
TOKENIZER_JSON = Keys(
    used=_words("added_tokens normalizer pre_tokenizer post_processor decoder model"),
    values={"version": ("1.0",)},
    free=_words("truncation padding"),
)


# -- PEFT ------------------------------------------------------------------------------------------

ADAPTER_CONFIG = Keys(
    used=_words(
        """r lora_alpha target_modules exclude_modules layers_to_transform rank_pattern
        alpha_pattern"""
    ),
    values={
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM",),
        "use_rslora": (False, True),
        # The others (pissa, olora, corda, loftq, lora_ga, ...) begin by changing the base.
        "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
        "layers_pattern": ("layers", ["layers"], "", []),
        "bias": ("none",),
        "lora_bias": (False,),
        "fan_in_fan_out": (False,),
        "modules_to_save": ([],),
        "layer_replication": ([],),
        "target_parameters": ([],),
        "trainable_token_indices": (),
        "ensure_weight_tying": (False,),
        "use_dora": (False,),
        "use_qalora": (False,),
        "use_bdlora": (),
        "alora_invocation_tokens": (),
        "arrow_config": (),
        "kasa_config": (),
        "monteclora_config": (),
        "velora_config": (),
        "megatron_config": (),
        "enable_lora": (),
    },
    free=_words(
        """auto_mapping base_model_name_or_path inference_mode lora_dropout megatron_core
        merge_weights peft_version revision runtime_config""",
        # of what `values` leaves switched off
        "corda_config eva_config loftq_config lora_ga_config qalora_group_size",
    ),
)


# -- GGUF ------------------------------------------------------------------------------------------

GGUF = Keys(
    used=_words(
        """general.architecture general.alignment
        llama.attention.head_count llama.attention.head_count_kv llama.attention.key_length
        llama.attention.layer_norm_rms_epsilon llama.attention.value_length llama.block_count
        llama.context_length llama.embedding_length llama.feed_forward_length
        llama.rope.dimension_count llama.rope.freq_base llama.vocab_size
        tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.tokens tokenizer.ggml.token_type
        tokenizer.ggml.merges tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id
        tokenizer.ggml.eom_token_id tokenizer.ggml.eot_token_id tokenizer.ggml.padding_token_id
        tokenizer.ggml.unknown_token_id"""
    ),
    values={
        "general.type": ("model",),
        "general.quantization_version": (2,),
        "llama.attention.causal": (True,),
        "llama.expert_count": (0,),
        "llama.expert_used_count": (0,),
        # llama.cpp scales linearly where no type is named, by no factor where it is 0.
        "llama.rope.scaling.type": ("none", "linear"),
        "llama.rope.scaling.factor": (0, 1),
        "llama.rope.scale_linear": (0, 1),
        "llama.rope.scaling.attn_factor": (1,),
        "tokenizer.ggml.add_bos_token": (False,),
        "tokenizer.ggml.add_eos_token": (False,),
        "tokenizer.ggml.add_sep_token": (False,),
        "tokenizer.ggml.add_space_prefix": (False,),
        "tokenizer.ggml.remove_extra_whitespaces": (False,),
        "split.no": (0,),
        "split.count": (0, 1),
    },
    free=_words(
        """llama.rope.scaling.finetuned llama.rope.scaling.original_context_length
        llama.tensor_data_layout split.tensors.count
        tokenizer.ggml.scores tokenizer.ggml.token_type_count
        tokenizer.ggml.cls_token_id tokenizer.ggml.mask_token_id tokenizer.ggml.seperator_token_id
        tokenizer.ggml.fim_mid_token_id tokenizer.ggml.fim_pad_token_id
        tokenizer.ggml.fim_pre_token_id tokenizer.ggml.fim_rep_token_id
        tokenizer.ggml.fim_sep_token_id tokenizer.ggml.fim_suf_token_id
        tokenizer.ggml.prefix_token_id tokenizer.ggml.suffix_token_id
        tokenizer.ggml.middle_token_id"""
    ),
    own=("llama.", "tokenizer.ggml.", "split.", "adapter."),
)
