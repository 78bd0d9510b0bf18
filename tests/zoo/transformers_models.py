"""Small random models of transformers, of its usual architectures with their usual heads, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import transformers as tf
from torch import nn

from fxprune.model import Inputs
from tests.exactness import varied_images
from tests.zoo.cases import Candidate, Draw, Source

VOCABULARY = 120
FRAMES = 64  # of Whisper's spectrograms

LAYERS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
TEXT = {"vocab_size": VOCABULARY, **LAYERS, "max_position_embeddings": 64}
IMAGE = {**LAYERS, "image_size": 64, "patch_size": 8, "num_labels": 10}
DECODER = {"num_key_value_heads": 2, "use_cache": False}


class Spec(NamedTuple):
    """One model: its configuration, its class, and what it takes."""

    config: Callable[..., Any]
    model: Callable[[Any], nn.Module]
    options: dict[str, Any]
    draw: Draw


def draw_tokens(batch: int, size: int, seed: int) -> Inputs:
    """Token ids, [batch, size]."""
    return (), {"input_ids": make_tokens(batch, size, seed)}


def draw_padded_tokens(batch: int, size: int, seed: int) -> Inputs:
    """Token ids and the mask of those that are no padding: the last sample is shorter than the others."""
    mask = torch.ones(batch, size, dtype=torch.int64)
    mask[-1, size - size // 4 :] = 0
    return (), {"input_ids": make_tokens(batch, size, seed), "attention_mask": mask}


def draw_two_texts(batch: int, size: int, seed: int) -> Inputs:
    """Token ids of a source and of a target, with the source's mask."""
    _, source = draw_padded_tokens(batch, size, seed)
    return (), {**source, "decoder_input_ids": make_tokens(batch, size // 2, seed + 100)}


def draw_speech(batch: int, size: int, seed: int) -> Inputs:
    """Spectrograms of the one length that Whisper takes, and the tokens so far, [batch, size]."""
    features = varied_images(batch, 1, FRAMES, seed)[:, 0, :20]
    return (), {"input_features": features, "decoder_input_ids": make_tokens(batch, size, seed)}


def draw_pixels(batch: int, size: int, seed: int) -> Inputs:
    """Images by keyword."""
    return (), {"pixel_values": varied_images(batch, 3, size, seed)}


def draw_text_and_pixels(batch: int, size: int, seed: int) -> Inputs:
    """Captions and images, as CLIP takes them: the last token is the one with the highest number."""
    tokens = make_tokens(batch, 12, seed)
    tokens[:, -1] = VOCABULARY - 1
    return (), {"input_ids": tokens, **draw_pixels(batch, size, seed)[1]}


def make_tokens(batch: int, size: int, seed: int) -> torch.Tensor:
    """Random token ids but the special ones."""
    return torch.randint(3, VOCABULARY - 1, (batch, size), generator=torch.Generator().manual_seed(seed))


def build_detr_config() -> Any:
    """DETR on a small ResNet of transformers' own."""
    widths: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
    backbone = tf.ResNetConfig(**widths, layer_type="basic", out_features=["stage4"])
    return tf.DetrConfig(
        backbone_config=backbone,
        num_queries=10,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_labels=10,
    )


SPECS = {
    "bert": Spec(tf.BertConfig, tf.BertForSequenceClassification, TEXT, draw_padded_tokens),
    "roberta": Spec(tf.RobertaConfig, tf.RobertaForSequenceClassification, TEXT, draw_padded_tokens),
    "distilbert": Spec(
        tf.DistilBertConfig,
        tf.DistilBertForSequenceClassification,
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128},
        draw_padded_tokens,
    ),
    "vit": Spec(tf.ViTConfig, tf.ViTForImageClassification, IMAGE, draw_pixels),
    "deit": Spec(tf.DeiTConfig, tf.DeiTForImageClassification, IMAGE, draw_pixels),
    "beit": Spec(
        tf.BeitConfig, tf.BeitForImageClassification, {**IMAGE, "use_relative_position_bias": True}, draw_pixels
    ),
    "swin": Spec(
        tf.SwinConfig,
        tf.SwinForImageClassification,
        {"image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 10},
        draw_pixels,
    ),
    "segformer": Spec(
        tf.SegformerConfig,
        tf.SegformerForSemanticSegmentation,
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64, "num_labels": 10},
        draw_pixels,
    ),
    "convnext": Spec(
        tf.ConvNextConfig,
        tf.ConvNextForImageClassification,
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_labels": 10},
        draw_pixels,
    ),
    "detr": Spec(build_detr_config, tf.DetrForObjectDetection, {}, draw_pixels),
    "gpt2": Spec(
        tf.GPT2Config,
        tf.GPT2LMHeadModel,
        {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4, "use_cache": False},
        draw_tokens,
    ),
    "llama": Spec(tf.LlamaConfig, tf.LlamaForCausalLM, {**TEXT, **DECODER}, draw_tokens),
    "mistral": Spec(tf.MistralConfig, tf.MistralForCausalLM, {**TEXT, **DECODER, "sliding_window": 8}, draw_tokens),
    "t5": Spec(
        tf.T5Config,
        tf.T5ForConditionalGeneration,
        {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        | {"use_cache": False},
        draw_two_texts,
    ),
    "whisper": Spec(
        tf.WhisperConfig,
        tf.WhisperForConditionalGeneration,
        {"vocab_size": VOCABULARY, "num_mel_bins": 20, "d_model": 64, "max_source_positions": FRAMES // 2}
        | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        | {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_target_positions": 64, "use_cache": False}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        draw_speech,
    ),
    "clip": Spec(
        tf.CLIPConfig,
        tf.CLIPModel,
        {
            "text_config": {**TEXT, "eos_token_id": VOCABULARY - 1},
            "vision_config": {**LAYERS, "image_size": 64, "patch_size": 8},
            "projection_dim": 32,
        },
        draw_text_and_pixels,
    ),
}
"""The models by name."""


def list_names() -> list[str]:
    """All models of the table."""
    return list(SPECS)


def candidates(name: str) -> Iterator[Candidate]:
    """One size, which the configurations are made for: pixels of images, or tokens of texts."""
    texts = (draw_tokens, draw_padded_tokens, draw_two_texts, draw_speech)
    yield Candidate({}, 16, 24) if SPECS[name].draw in texts else Candidate({}, 64, 96)


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights."""
    spec = SPECS[name]
    return spec.model(spec.config(**spec.options, **options))


def draw(name: str, model: nn.Module) -> Draw:
    """The inputs of a model."""
    return SPECS[name].draw


TRANSFORMERS = Source(candidates, build, draw)
