"""Models of other libraries, as they build them, small where they let one choose: most are written with einops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fxprune.model import Inputs
from tests.exactness import varied_images
from tests.zoo.cases import Candidate, Draw, Source

VOCABULARY = 50


class Spec(NamedTuple):
    """One model: its module and class, what its constructor takes, its inputs, and two sizes of them."""

    module: str
    kind: str
    options: dict[str, Any]
    draw: Draw
    size: int = 64
    other: int = 96


def draw_images(batch: int, size: int, seed: int) -> Inputs:
    """Images, [batch, 3, size, size]."""
    return (varied_images(batch, 3, size, seed),), {}


def draw_volumes(batch: int, size: int, seed: int) -> Inputs:
    """Grey volumes, [batch, 1, size, size, size]."""
    return (varied_images(batch, size, size, seed)[:, None],), {}


def draw_tokens(batch: int, size: int, seed: int) -> Inputs:
    """Token ids, [batch, size]."""
    return (make_tokens(batch, size, seed),), {}


def draw_rows(width: int, scale: int = 1) -> Draw:
    """Rows of features, [batch, size, width], or, of width 1 or 2, waves of so many channels, [batch, width, size]."""

    def draw(batch: int, size: int, seed: int) -> Inputs:
        rows = varied_images(batch, 1, max(size * scale, width), seed)[:, 0, : size * scale, :width]
        return (rows.transpose(1, 2) if width < 3 else rows,), {}

    return draw


def draw_images_and_tokens(batch: int, size: int, seed: int) -> Inputs:
    """Images and token ids of 16 places."""
    return (varied_images(batch, 3, size, seed), make_tokens(batch, 16, seed)), {}


def draw_latents(batch: int, size: int, seed: int) -> Inputs:
    """Latent images, time steps and the rows of a text."""
    return (), {
        "sample": varied_images(batch, 4, size, seed),
        "timestep": torch.arange(batch) * 3 + 1,
        "encoder_hidden_states": varied_images(batch, 1, 24, seed)[:, 0, :7],
    }


def draw_noisy_images(batch: int, size: int, seed: int) -> Inputs:
    """Images and time steps."""
    return (), {"sample": varied_images(batch, 3, size, seed), "timestep": torch.arange(batch) * 3 + 1}


def draw_classes(batch: int, size: int, seed: int) -> Inputs:
    """Latent images, time steps and classes."""
    return (), {
        "hidden_states": varied_images(batch, 4, size, seed),
        "timestep": torch.arange(batch) * 3 + 1,
        "class_labels": torch.arange(batch) % 9,
    }


def make_tokens(batch: int, size: int, seed: int) -> Tensor:
    return torch.randint(1, VOCABULARY - 1, (batch, size), generator=torch.Generator().manual_seed(seed))


def of_vit_pytorch() -> Iterator[tuple[str, Spec]]:
    """Vision transformers of two blocks, 32 channels and two heads."""
    plain = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
    stages = {f"s{i}_{key}": 1 for i in range(1, 5) for key in ("depth", "local_patch_size", "global_k")}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "vit": ("ViT", plain),
        "simple_vit": ("SimpleViT", plain),
        "simple_vit_with_register_tokens": ("SimpleViT", plain),
        "simple_vit_with_qk_norm": ("SimpleViT", plain),
        "simple_vit_with_value_residual": ("SimpleViT", plain),
        "simple_vit_with_fft": ("SimpleViT", {**plain, "freq_patch_size": 16}),
        "vit_for_small_dataset": ("ViT", plain),
        "vit_with_patch_dropout": ("ViT", {**plain, "patch_dropout": 0.25}),
        "parallel_vit": ("ViT", {**plain, "num_parallel_branches": 2}),
        "learnable_memory_vit": ("ViT", plain),
        "deepvit": ("DeepViT", plain),
        "rvt": ("RvT", plain),
        "normalized_vit": ("nViT", plain),
        "jumbo_vit": ("JumboViT", {**plain, "num_jumbo_cls": 1, "jumbo_cls_k": 2, "jumbo_ff_mult": 2}),
        "cait": ("CaiT", {**plain, "cls_depth": 1}),
        "xcit": ("XCiT", {**plain, "cls_depth": 1, "local_patch_kernel_size": 3}),
        "pit": ("PiT", {**plain, "patch_size": 8, "depth": (1, 1)}),
        "levit": ("LeViT", {"image_size": 64, "num_classes": 10, "stages": 2, "dim": (32, 48), "depth": 1,
                            "heads": (2, 3), "mlp_mult": 2}),
        "nest": ("NesT", {"image_size": 64, "patch_size": 4, "dim": 32, "heads": 2, "num_hierarchies": 3,
                          "block_repeats": (1, 1, 1), "num_classes": 10}),
        "cvt": ("CvT", {"num_classes": 10, **{f"s{i}_emb_dim": 32 for i in (1, 2, 3)},
                        **{f"s{i}_{key}": n for i in (1, 2, 3) for key, n in (("depth", 1), ("heads", 2))}}),
        "twins_svt": ("TwinsSVT", {"num_classes": 10, **stages, **{f"s{i}_emb_dim": 32 for i in range(1, 5)},
                                   "s1_patch_size": 4, "s1_local_patch_size": 4, "s2_local_patch_size": 4}),
        "max_vit": ("MaxViT", {"num_classes": 10, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1),
                               "window_size": 4}),
        "mobile_vit": ("MobileViT", {"image_size": (64, 64), "dims": [32, 48, 64], "num_classes": 10,
                                     "channels": [16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96]}),
        "scalable_vit": ("ScalableViT", {"num_classes": 10, "dim": 16, "heads": 2, "depth": (1, 1, 1, 1),
                                         "ssa_dim_key": 8, "reduction_factor": (4, 2, 2, 1),
                                         "window_size": (8, None, None, None)}),
        "look_vit": ("LookViT", {"dim": 32, "image_size": 64, "num_classes": 10, "depth": 1, "patch_size": 16,
                                 "heads": 2, "mlp_factor": 2, "dim_head": 16, "highres_patch_size": 8,
                                 "highres_mlp_factor": 2,
                                 "cross_attn_heads": 2, "cross_attn_dim_head": 16, "patch_conv_kernel_size": 7}),
    }  # fmt: skip
    for name, (kind, options) in kinds.items():
        yield f"vit_pytorch.{name}", Spec(f"vit_pytorch.{name}", kind, options, draw_images)


def of_x_transformers() -> Iterator[tuple[str, Spec]]:
    """A language model of two blocks, with one after the other of the library's options."""
    options = [
        "", "rotary_pos_emb", "ff_glu", "use_rmsnorm", "attn_one_kv_head", "attn_qk_norm", "sandwich_norm",
        "attn_flash", "macaron", "attn_gate_values", "rotary_xpos", "residual_attn", "scale_residual",
    ]  # fmt: skip
    for option in options:
        layers = {option: True} if option else {}
        yield f"x_transformers {option}".strip(), Spec("x_transformers", "Decoder", layers, draw_tokens, 16, 24)


def of_segmentation_models() -> Iterator[tuple[str, Spec]]:
    """Every decoder behind a ResNet-18, and a U-Net behind other encoders."""
    decoders = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
                "Segformer")  # fmt: skip
    encoders = (
        "efficientnet-b0",
        "mobilenet_v2",
        "mit_b0",
        "vgg11",
        "densenet121",
        "xception",
        "mobileone_s0",
        "dpn68",
    )
    for kind, encoder in [*((each, "resnet18") for each in decoders), *(("Unet", each) for each in encoders)]:
        options = {"encoder_name": encoder, "encoder_weights": None}
        yield f"smp.{kind} {encoder}", Spec("segmentation_models_pytorch", kind, options, draw_images)


def of_diffusers() -> Iterator[tuple[str, Spec]]:
    """What diffusion models consist of, with blocks of 32 and 64 channels."""
    blocks: dict[str, Any] = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
    coder: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
                             "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (16, 32),
                             "norm_num_groups": 8}  # fmt: skip
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    cross = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 24,
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    transformer = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 2,
                   "sample_size": 16, "patch_size": 2, "norm_num_groups": 8, "num_embeds_ada_norm": 10}  # fmt: skip
    heads = {"attention_head_dim": 8}
    for kind, options, draw, size, other in (
        ("UNet2DModel", {**blocks, **heads, "down_block_types": down, "up_block_types": up}, draw_noisy_images, 32, 48),
        ("UNet2DConditionModel", {**blocks, **heads, **cross}, draw_latents, 32, 48),
        ("AutoencoderKL", coder, draw_images, 32, 48),
        ("VQModel", {**coder, "num_vq_embeddings": 32}, draw_images, 32, 48),
        ("DiTTransformer2DModel", transformer, draw_classes, 16, 16),
    ):
        yield f"diffusers.{kind}", Spec("diffusers", kind, options, draw, size, other)


def of_ultralytics() -> Iterator[tuple[str, Spec]]:
    """Detectors from the image to the raw boxes, and what else they are built for."""
    tasks = {"yolov8n-seg": "SegmentationModel", "yolov8n-cls": "ClassificationModel", "yolo11n-pose": "PoseModel"}
    plain = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "rtdetr-l")
    for name in (*plain, *tasks):
        options = {"cfg": f"{name}.yaml", "verbose": False}
        yield (
            f"ultralytics.{name}",
            Spec("ultralytics.nn.tasks", tasks.get(name, "DetectionModel"), options, draw_images),
        )


def of_monai() -> Iterator[tuple[str, Spec]]:
    """Networks for volumes."""
    both = {"in_channels": 1, "out_channels": 2}
    for kind, options, size, other in (
        ("UNet", {"spatial_dims": 3, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2}, 16, 24),
        ("DynUNet", {"spatial_dims": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
                     "filters": [8, 16, 32]}, 16, 24),
        ("SegResNet", {"spatial_dims": 3, "init_filters": 8}, 16, 24),
        ("UNETR", {"img_size": (32, 32, 32), "feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
         32, 32),
        ("AttentionUnet", {"spatial_dims": 3, "channels": (8, 16, 32), "strides": (2, 2)}, 16, 32),
        ("HighResNet", {"spatial_dims": 3}, 16, 24),
        ("DenseNet121", {"spatial_dims": 3}, 32, 48),
    ):  # fmt: skip
        yield f"monai.{kind}", Spec("monai.networks.nets", kind, {**both, **options}, draw_volumes, size, other)


def of_others() -> Iterator[tuple[str, Spec]]:
    """Sound, and images beside texts."""
    tower = {"layers": 2, "heads": 4, "width": 32, "context_length": 16, "vocab_size": VOCABULARY}
    image = {"layers": 2, "width": 64, "patch_size": 16, "image_size": 64, "head_width": 16}
    clip = {"embed_dim": 32, "vision_cfg": image, "text_cfg": tower}
    separator = {"num_sources": 2, "enc_num_feats": 16, "msk_num_feats": 8, "msk_num_hidden_feats": 16,
                 "msk_num_layers": 2, "msk_num_stacks": 2}  # fmt: skip
    yield "open_clip.CLIP", Spec("open_clip.model", "CLIP", clip, draw_images_and_tokens)
    yield "torchaudio.ConvTasNet", Spec("torchaudio.models", "ConvTasNet", separator, draw_rows(1, 8), 50, 70)
    named = {"model_name": "efficientnet-b0"}
    yield "efficientnet_pytorch.b0", Spec("efficientnet_pytorch", "EfficientNet.from_name", named, draw_images)


LIBRARIES: tuple[Callable[[], Iterator[tuple[str, Spec]]], ...] = (
    of_vit_pytorch, of_x_transformers, of_segmentation_models, of_diffusers, of_ultralytics, of_monai, of_others,
)  # fmt: skip

SPECS: dict[str, Spec] = {name: spec for library in LIBRARIES for name, spec in library()}
"""The models by name."""


def list_names() -> list[str]:
    """All models of the table."""
    return list(SPECS)


def candidates(name: str) -> Iterator[Candidate]:
    """The one pair of sizes."""
    yield Candidate({}, SPECS[name].size, SPECS[name].other)


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights."""
    spec = SPECS[name]
    make: Any = import_module(spec.module)
    for part in spec.kind.split("."):
        make = getattr(make, part)
    made = make(**spec.options, **({"dim": 32, "depth": 2, "heads": 4} if spec.module == "x_transformers" else {}))
    if spec.module == "x_transformers":
        return import_module(spec.module).TransformerWrapper(  # type: ignore[no-any-return]
            num_tokens=VOCABULARY, max_seq_len=64, attn_layers=made
        )
    return made  # type: ignore[no-any-return]


def draw(name: str, model: nn.Module) -> Draw:
    """The inputs of a model."""
    return SPECS[name].draw


OTHERS = Source(candidates, build, draw)
