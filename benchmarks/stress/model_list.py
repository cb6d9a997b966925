"""Models of torchvision, timm and transformers, and hand-made ones, in small configurations.

All have random weights and two classes; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int, torch.Generator], Any]
"""Gives a mini-batch of so many samples."""


@dataclass(frozen=True)
class Entry:
    """A model to try.

    :param library: that has it, ``torch`` for those that are made here.
    :param name: as the page shows it.
    :param build: makes it, with the same values for the same seed of torch.
    :param inputs: of a mini-batch.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs


# ------------------------------------------------------------------ inputs


def _images(size: int = 32) -> Inputs:
    return lambda count, generator: torch.randn(count, 3, size, size, generator=generator)


def _rows(length: int = 6, width: int = 8) -> Inputs:
    return lambda count, generator: torch.randn(count, length, width, generator=generator)


def _waves(length: int = 800) -> Inputs:
    return lambda count, generator: {
        "input_values": torch.randn(count, length, generator=generator)
    }


def _spectra(bins: int = 16, frames: int = 40) -> Inputs:
    return lambda count, generator: {
        "input_features": torch.randn(count, bins, frames, generator=generator)
    }


def _pixels(size: int = 32) -> Inputs:
    return lambda count, generator: {
        "pixel_values": torch.randn(count, 3, size, size, generator=generator)
    }


def _texts(masked: bool = True, words: int = 60, length: int = 10, last: int = 2) -> Inputs:
    """Token numbers that end in ``last`` and are padded with 0."""

    def inputs(count: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        ids = torch.randint(3, words, (count, length), generator=generator)
        ends = length - 1 - torch.arange(count) % 3
        ids[torch.arange(count), ends] = last
        mask = (torch.arange(length) <= ends.unsqueeze(1)).long()
        return {"input_ids": ids * mask, **({"attention_mask": mask} if masked else {})}

    return inputs


# ------------------------------------------------------------------ models made here


class Recurrent(nn.Module):
    """The last hidden state of a recurrent layer, classified: (N, T, 8) -> (N, 2)."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        layer: Any = kind
        self.body = layer(8, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """torch's ``TransformerEncoder`` over projected rows, averaged: (N, T, 8) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.put_in = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.put_in(x)).mean(1))  # type: ignore[no-any-return]


class Last(nn.Module):
    """A body of ``transformers`` whose last state is classified, for one that has no classifier."""

    def __init__(self, body: nn.Module, width: int):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.head(states[:, -1])  # type: ignore[no-any-return]


# ------------------------------------------------------------------ builders


def _made(path: str, **options: Any) -> nn.Module:
    """What a function or a class of a library makes, given by its dotted path."""
    module, _, name = path.rpartition(".")
    make = getattr(import_module(module), name)
    return make(num_classes=2, **options)  # type: ignore[no-any-return]


def _of(path: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(_made, path, **options)


def _convnext() -> nn.Module:
    block: Any = import_module("torchvision.models.convnext").CNBlockConfig
    settings = [block(16, 32, 2), block(32, None, 2)]
    return _made("torchvision.models.ConvNeXt", block_setting=settings)


def _resnet() -> nn.Module:
    block: Any = import_module("torchvision.models.resnet").BasicBlock
    return _made("torchvision.models.ResNet", block=block, layers=[1, 1, 1, 1])


def _repvgg() -> nn.Module:
    module: Any = import_module("timm.models.byobnet")
    blocks = tuple(module.ByoBlockCfg(type="rep", d=1, c=c, s=2, gs=0) for c in (16, 24, 32, 48))
    config = module.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=16)
    return _made("timm.models.byobnet.ByobNet", cfg=config)


def _nfnet() -> nn.Module:
    config: Any = import_module("timm.models.nfnet").NfCfg
    sizes = {"depths": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "group_size": 8}
    more = {"stem_type": "3x3", "extra_conv": True, "gamma_in_act": True, "attn_layer": "se"}
    return _made(
        "timm.models.nfnet.NormFreeNet", cfg=config(**sizes, **more, attn_kwargs={"rd_ratio": 0.5})
    )


def _checkpointed() -> nn.Module:
    model: Any = _made("timm.models.vision_transformer.VisionTransformer", **VIT)
    model.set_grad_checkpointing(True)
    return model  # type: ignore[no-any-return]


def _classifier(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of ``transformers`` by the name of its class, with a configuration of its own."""
    return partial(_configured, f"{name}Classification", **options)


def _configured(name: str, **options: Any) -> nn.Module:
    kind: Any = getattr(import_module("transformers"), name)
    return kind(kind.config_class(num_labels=2, **options))  # type: ignore[no-any-return]


def _mamba() -> nn.Module:
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    return Last(_configured("MambaModel", **sizes), 16)


DENSE = {"growth_rate": 8, "block_config": (2, 2, 2), "num_init_features": 16}
NO_AUX = {"aux_logits": False, "init_weights": False}
TORCHVISION_VIT = {
    **{"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2},
    **{"hidden_dim": 32, "mlp_dim": 64},
}
TORCHVISION_SWIN = {
    **{"patch_size": [4, 4], "window_size": [4, 4], "depths": [2, 2], "num_heads": [2, 4]},
    "embed_dim": 16,
}
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
"""Sizes that timm's transformers have in common."""
LEVIT = {
    **{"img_size": 64, "embed_dim": (16, 24, 32), "depth": (1, 1, 1), "num_heads": (2, 2, 2)},
    "key_dim": 8,
}
TINY_VIT = {
    **{"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
    "window_sizes": (7, 7, 7, 2),
}
EFFICIENTFORMER = {"depths": (1, 1, 1, 2), "embed_dims": (8, 16, 24, 32), "num_vit": 1}
BIT = {"layers": (1, 1, 1, 1), "channels": (128, 128, 128, 128), "stem_type": "fixed"}
MIXER = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "num_blocks": 2}
LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
"""Sizes that transformers' models have in common."""
BERT = {**LAYERS, "vocab_size": 60, "max_position_embeddings": 32, "pad_token_id": 0}
"""Sizes of those that read text."""
PATCHES = {**LAYERS, "image_size": 32, "patch_size": 16}
"""Sizes of those that see patches."""
STAGES = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16}
"""Sizes of Swin."""
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 60}
OPT = {**BERT, "ffn_dim": 32, "word_embed_proj_dim": 16}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONVNEXT = {"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 60}
WAV2VEC2 = {
    **LAYERS,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
WHISPER = {
    "vocab_size": 60,
    "num_mel_bins": 16,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "max_source_positions": 20,
    "classifier_proj_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

# ------------------------------------------------------------------ the list

Row = tuple[str, Callable[[], nn.Module], Inputs]


def _entries(library: str, rows: Sequence[Row]) -> list[Entry]:
    return [Entry(library, *row) for row in rows]


_V, _T = "torchvision.models.", "timm.models."
TORCHVISION = _entries(
    "torchvision",
    [
        ("resnet18", _resnet, _images()),
        (
            "densenet121, `memory_efficient`",
            _of(_V + "DenseNet", memory_efficient=True, **DENSE),
            _images(),
        ),
        ("mobilenet_v2", _of(_V + "mobilenet_v2", width_mult=0.25), _images()),
        ("mnasnet0_5", _of(_V + "mnasnet0_5"), _images(64)),
        ("mobilenet_v3_small", _of(_V + "mobilenet_v3_small", width_mult=0.25), _images()),
        ("efficientnet_b0", _of(_V + "efficientnet_b0"), _images()),
        ("squeezenet1_1", _of(_V + "squeezenet1_1"), _images()),
        ("googlenet, `aux_logits=False`", _of(_V + "googlenet", **NO_AUX), _images()),
        ("googlenet, `aux_logits=True`", _of(_V + "googlenet", init_weights=False), _images(64)),
        ("inception_v3, `aux_logits=False`", _of(_V + "inception_v3", **NO_AUX), _images(75)),
        ("vit_b_16", _of(_V + "VisionTransformer", **TORCHVISION_VIT), _images()),
        ("swin_t", _of(_V + "SwinTransformer", **TORCHVISION_SWIN), _images()),
        ("convnext_tiny", _convnext, _images()),
        ("regnet_y_400mf", _of(_V + "regnet_y_400mf"), _images()),
        ("shufflenet_v2_x0_5", _of(_V + "shufflenet_v2_x0_5"), _images()),
    ],
)
TIMM = _entries(
    "timm",
    [
        ("levit", _of(_T + "levit.Levit", **LEVIT), _images(64)),
        ("tiny_vit", _of(_T + "tiny_vit.TinyVit", **TINY_VIT), _images(64)),
        (
            "efficientformer",
            _of(_T + "efficientformer.EfficientFormer", **EFFICIENTFORMER),
            _images(224),
        ),
        ("deit_tiny_distilled", _of(_T + "deit.VisionTransformerDistilled", **VIT), _images()),
        ("resnetv2_bit", _of(_T + "resnetv2.ResNetV2", **BIT), _images(64)),
        ("beit", _of(_T + "beit.Beit", **VIT, use_rel_pos_bias=True), _images()),
        ("mixer", _of(_T + "mlp_mixer.MlpMixer", **MIXER), _images()),
        ("convmixer", _of(_T + "convmixer.ConvMixer", dim=32, depth=2), _images()),
        ("repvgg_a0", _repvgg, _images()),
        ("nfnet", _nfnet, _images()),
        ("vit_tiny, `set_grad_checkpointing`", _checkpointed, _images()),
        ("mobilevit_xxs", _of("timm.models.mobilevit_xxs"), _images()),
    ],
)
TRANSFORMERS = _entries(
    "transformers",
    [
        ("Bert", _classifier("BertForSequence", **BERT), _texts()),
        ("DistilBert", _classifier("DistilBertForSequence", **DISTILBERT), _texts()),
        ("Roberta", _classifier("RobertaForSequence", **BERT), _texts()),
        (
            "Albert, tied layers",
            _classifier("AlbertForSequence", **BERT, embedding_size=8),
            _texts(),
        ),
        ("GPT2, `Conv1D`", _classifier("GPT2ForSequence", **GPT2, **TOKENS), _texts()),
        ("OPT", _classifier("OPTForSequence", **OPT), _texts()),
        ("T5", _classifier("T5ForSequence", **T5, **TOKENS, decoder_start_token_id=0), _texts()),
        ("Llama", _classifier("LlamaForSequence", **BERT), _texts()),
        ("Mamba and a Linear", _mamba, _texts(masked=False)),
        ("ViT", _classifier("ViTForImage", **PATCHES), _pixels()),
        (
            "DeiT, two heads",
            partial(_configured, "DeiTForImageClassificationWithTeacher", **PATCHES),
            _pixels(),
        ),
        ("Swin", _classifier("SwinForImage", **STAGES, image_size=32, window_size=4), _pixels()),
        ("ConvNext", _classifier("ConvNextForImage", **CONVNEXT), _pixels()),
        ("Wav2Vec2", _classifier("Wav2Vec2ForSequence", **WAV2VEC2), _waves()),
        ("Whisper, its encoder", _classifier("WhisperForAudio", **WHISPER), _spectra()),
    ],
)
HAND_MADE = _entries(
    "torch",
    [
        ("`nn.LSTM`, two layers, both directions", partial(Recurrent, nn.LSTM), _rows()),
        ("`nn.GRU`, two layers, both directions", partial(Recurrent, nn.GRU), _rows()),
        ("`nn.TransformerEncoder`", Encoder, _rows()),
    ],
)
ENTRIES: Sequence[Entry] = [*HAND_MADE, *TORCHVISION, *TIMM, *TRANSFORMERS]
"""The rows of the page."""
