"""transformers: tiny random configurations of encoders, decoders, mixtures, vision and speech."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from benchmarks.coverage.case import Call, Case, Inputs, integers, normal

_SMALL: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_DECODER = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}
_GPT = {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_BART = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
       "decoder_start_token_id": 0}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32}  # fmt: skip
_VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
           "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
_SPEECH = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 8),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
    "feat_extract_norm": "layer",
}  # fmt: skip


def text(batch: int, changed: bool) -> Call:
    """Tokens alone, without a cache in the output."""
    return (), {"input_ids": integers(99, batch, 13 if changed else 9), "use_cache": False}


def alone(batch: int, changed: bool) -> Call:
    """Tokens and nothing else."""
    return (), {"input_ids": integers(99, batch, 13 if changed else 9)}


def masked(batch: int, changed: bool) -> Call:
    """Tokens with a padding mask."""
    tokens = integers(99, batch, 13 if changed else 9)
    mask = torch.ones_like(tokens)
    mask[0, -2:] = 0
    return (), {"input_ids": tokens, "attention_mask": mask}


def cached(batch: int, changed: bool) -> Call:
    """Tokens, with the cache in the output, as ``generate`` calls it."""
    return (), {"input_ids": integers(99, batch, 13 if changed else 9), "use_cache": True}


def both(batch: int, changed: bool) -> Call:
    """Tokens for an encoder and for a decoder."""
    _, given = masked(batch, changed)
    return (), {**given, "decoder_input_ids": integers(99, batch, 6), "use_cache": False}


def pixels(batch: int, changed: bool) -> Call:
    """Images."""
    side = 64 if changed else 32
    return (), {"pixel_values": normal(batch, 3, side, side)}


def fixed_pixels(batch: int, changed: bool) -> Call:
    """Images of one size."""
    return pixels(batch, False)


def waves(batch: int, changed: bool) -> Call:
    """Sound."""
    return (), {"input_values": normal(batch, 1600 if changed else 1200)}


def spectrum(batch: int, changed: bool) -> Call:
    """Spectrogram and text, for whisper."""
    return (), {
        "input_features": normal(batch, 16, 40),
        "decoder_input_ids": integers(99, batch, 7 if changed else 5),
        "use_cache": False,
    }


def pairs(batch: int, changed: bool) -> Call:
    """Images and texts."""
    return (), {**pixels(batch, False)[1], "input_ids": integers(99, batch, 9 if changed else 7)}


_CLIP_TEXT = {**_SMALL, "max_position_embeddings": 16}
_CLIP = {"text_config": _CLIP_TEXT, "vision_config": _VISION, "projection_dim": 16}
_SAME = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}

CASES: dict[str, tuple[str, str, dict[str, Any], Inputs]] = {
    # encoders
    "bert": ("bert", "BertForSequenceClassification", _SMALL, masked),
    "bert, all outputs": ("bert", "BertForSequenceClassification",
                          {**_SMALL, "output_hidden_states": True, "output_attentions": True,
                           "attn_implementation": "eager"}, masked),
    "bert, pretraining": ("bert", "BertForMaskedLM", _SMALL, masked),
    "roberta": ("roberta", "RobertaForTokenClassification", {**_SMALL, "pad_token_id": 1}, masked),
    "distilbert": ("distilbert", "DistilBertForQuestionAnswering",
                   {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
                   masked),
    "albert": ("albert", "AlbertModel", {**_SMALL, "embedding_size": 16}, masked),
    "electra": ("electra", "ElectraForPreTraining", {**_SMALL, "embedding_size": 16}, masked),
    "deberta": ("deberta-v2", "DebertaV2Model",
                {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, masked),
    "mpnet": ("mpnet", "MPNetModel", {**_SMALL, "pad_token_id": 1}, masked),
    "modernbert": ("modernbert", "ModernBertForMaskedLM", _SMALL, masked),
    "xlnet": ("xlnet", "XLNetModel", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4,
                                      "d_inner": 64}, masked),
    "funnel": ("funnel", "FunnelModel", {"vocab_size": 99, "d_model": 32, "n_head": 4, "d_head": 8,
                                         "d_inner": 64, "block_sizes": [1, 1],
                                         "num_decoder_layers": 1}, masked),
    "fnet": ("fnet", "FNetModel", _SMALL, alone),
    # decoders
    "gpt2": ("gpt2", "GPT2LMHeadModel", _GPT, text),
    "gpt2, cache": ("gpt2", "GPT2LMHeadModel", _GPT, cached),
    "gpt-neo": ("gpt_neo", "GPTNeoForCausalLM",
                {"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                 "attention_types": [[["global", "local"], 1]], "window_size": 4,
                 "max_position_embeddings": 64}, text),
    "gpt-neox": ("gpt_neox", "GPTNeoXForCausalLM", _SMALL, text),
    "opt": ("opt", "OPTForCausalLM", {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, text),
    "bloom": ("bloom", "BloomForCausalLM", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2,
                                            "n_head": 4}, text),
    "llama": ("llama", "LlamaForCausalLM", _DECODER, text),
    "llama, cache": ("llama", "LlamaForCausalLM", _DECODER, cached),
    "mistral": ("mistral", "MistralForCausalLM", {**_DECODER, "sliding_window": 4}, text),
    "gemma": ("gemma", "GemmaForCausalLM", _DECODER, text),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", {**_DECODER, "sliding_window": 4}, text),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", _DECODER, text),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", _DECODER, text),
    "phi3": ("phi3", "Phi3ForCausalLM", _DECODER, text),
    "falcon": ("falcon", "FalconForCausalLM", _SMALL, text),
    "olmo": ("olmo", "OlmoForCausalLM", _DECODER, text),
    # encoder-decoders
    "t5": ("t5", "T5ForConditionalGeneration", _T5, both),
    "bart": ("bart", "BartForConditionalGeneration", _BART, both),
    "marian": ("marian", "MarianMTModel", {**_BART, "pad_token_id": 1}, both),
    "pegasus": ("pegasus", "PegasusForConditionalGeneration", _BART, both),
    # mixtures of experts
    "mixtral": ("mixtral", "MixtralForCausalLM", {**_DECODER, **_EXPERTS}, text),
    "qwen2-moe": ("qwen2_moe", "Qwen2MoeForCausalLM",
                  {**_DECODER, **_EXPERTS, "shared_expert_intermediate_size": 32}, text),
    "olmoe": ("olmoe", "OlmoeForCausalLM", {**_DECODER, **_EXPERTS}, text),
    "switch": ("switch_transformers", "SwitchTransformersForConditionalGeneration",
               {**_T5, "num_experts": 4, "num_sparse_encoder_layers": 1,
                "num_sparse_decoder_layers": 1}, both),
    # state spaces and recurrences
    "mamba": ("mamba", "MambaForCausalLM", {"vocab_size": 99, "hidden_size": 32, "state_size": 4,
                                            "num_hidden_layers": 2}, text),
    "mamba2": ("mamba2", "Mamba2ForCausalLM",
               {"vocab_size": 99, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
                "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4}, text),
    "rwkv": ("rwkv", "RwkvModel", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2},
             text),
    "rwkv, not rescaled": ("rwkv", "RwkvModel",
                           {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2,
                            "rescale_every": 0}, text),
    # speech
    "wav2vec2": ("wav2vec2", "Wav2Vec2ForCTC", _SPEECH, waves),
    "hubert": ("hubert", "HubertModel", _SPEECH, waves),
    "whisper": ("whisper", "WhisperForConditionalGeneration",
                {**_BART, "num_mel_bins": 16, "max_source_positions": 20,
                 "max_target_positions": 20}, spectrum),
    # vision
    "vit": ("vit", "ViTForImageClassification", _VISION, fixed_pixels),
    "deit": ("deit", "DeiTModel", _VISION, fixed_pixels),
    "beit": ("beit", "BeitForImageClassification", _VISION, fixed_pixels),
    "dinov2": ("dinov2", "Dinov2Model", _VISION, pixels),
    "swin": ("swin", "SwinForImageClassification",
             {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
              "num_heads": [2, 2], "window_size": 4}, pixels),
    "convnext": ("convnext", "ConvNextForImageClassification", _SAME, pixels),
    "segformer": ("segformer", "SegformerForSemanticSegmentation",
                  {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1],
                   "hidden_sizes": [16, 32], "patch_sizes": [3, 3], "strides": [4, 2],
                   "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
                   "decoder_hidden_size": 32}, pixels),
    "clip": ("clip", "CLIPModel", _CLIP, pairs),
    "siglip": ("siglip", "SiglipModel", {k: v for k, v in _CLIP.items() if "config" in k}, pairs),
}  # fmt: skip
"""Name -> model type, class, configuration, and inputs."""


TIED = ("bert, pretraining", "gpt2", "gemma", "t5", "bart", "whisper", "mamba")
"""Models that are converted a second time, with include_tied."""

REFUSED = {"rwkv": "which may become sparse"}
"""Model -> part of the error with which it is refused: RWKV halves its weights in eval mode."""


def names() -> list[str]:
    """All configurations, then some with the projections of their tied embeddings."""
    return [*CASES, *(f"{name}, projection" for name in TIED)]


def case(name: str) -> Case:
    """One configuration."""
    untied = name.removesuffix(", projection")
    model_type, kind, settings, inputs = CASES[untied]
    options = {"include_tied": True} if untied != name else {}

    def build() -> nn.Module:
        configuration = AutoConfig.for_model(model_type, **settings)
        make: Callable[[Any], nn.Module] = getattr(transformers, kind)
        return make(configuration)

    return Case(name, build, inputs, options, batch=3, refused=REFUSED.get(name, ""))
