"""The configurations of a model's parts, as diffusers and transformers write them: types and sizes checked before use.

Keys that are left out have the libraries' defaults; keys that are not known are passed over, as the libraries do. Sizes
are bounded, since modules of any size are built from them, if only on the meta device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import Field

from miga.backbones.weight_files import printable, read_json
from miga.errors import ModelError
from miga.outside_data import OutsideDataError, shown, validated

T = TypeVar("T")

Size: TypeAlias = Annotated[int, Field(ge=1, le=2**17)]
Words: TypeAlias = Annotated[int, Field(ge=1, le=2**22)]
Few: TypeAlias = Annotated[int, Field(ge=1, le=64)]
Layers: TypeAlias = Annotated[int, Field(ge=1, le=128)]
Small: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Rate: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Token: TypeAlias = Annotated[int, Field(ge=0, le=2**22)]

QUANTIZATIONS: Final = ("quantization_config", "compression_config")


@dataclass(frozen=True, kw_only=True)
class WanTransformerConfig:
    """diffusers' `WanTransformer3DModel`, its defaults those of Wan2.1 14B."""

    patch_size: tuple[Few, Few, Few] = (1, 2, 2)
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 40
    attention_head_dim: Annotated[int, Field(ge=2, le=1024)] = 128
    in_channels: Size = 16
    out_channels: Size | None = 16
    text_dim: Size = 4096
    freq_dim: Size = 256
    ffn_dim: Size = 13824
    num_layers: Layers = 40
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: Small = 1e-6
    image_dim: Size | None = None
    added_kv_proj_dim: Size | None = None
    rope_max_seq_len: Annotated[int, Field(ge=1, le=2**16)] = 1024
    pos_embed_seq_len: Size | None = None

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """diffusers' `AutoencoderKLWan`, its defaults those of Wan2.1."""

    base_dim: Annotated[int, Field(ge=1, le=4096)] = 96
    decoder_base_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    z_dim: Annotated[int, Field(ge=1, le=1024)] = 16
    dim_mult: Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Field(ge=1, le=16)] = 2
    attn_scales: Annotated[tuple[float, ...], Field(max_length=8)] = ()
    temperal_downsample: Annotated[tuple[bool, ...], Field(max_length=7)] = (False, True, True)
    dropout: Rate = 0.0
    latents_mean: tuple[float, ...] = (
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latents_std: tuple[Annotated[float, Field(gt=0)], ...] = (
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    )  # fmt: skip
    is_residual: bool = False
    in_channels: Size = 3
    out_channels: Size = 3
    patch_size: Annotated[int, Field(ge=1, le=16)] | None = None
    scale_factor_temporal: Few | None = 4
    scale_factor_spatial: Annotated[int, Field(ge=1, le=2**11)] | None = 8

    def __post_init__(self) -> None:
        spatial = 2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1)
        temporal = 2 ** sum(self.temperal_downsample)
        problems = {
            f"latents_mean has {len(self.latents_mean)} numbers, z_dim is {self.z_dim}": (
                len(self.latents_mean) != self.z_dim
            ),
            f"latents_std has {len(self.latents_std)} numbers, z_dim is {self.z_dim}": (
                len(self.latents_std) != self.z_dim
            ),
            "temperal_downsample must be one shorter than dim_mult": (
                len(self.temperal_downsample) != len(self.dim_mult) - 1
            ),
            f"scale_factor_spatial is {self.scale_factor_spatial}, and the other sizes make {spatial}": (
                self.scale_factor_spatial not in (None, spatial)
            ),
            f"scale_factor_temporal is {self.scale_factor_temporal}, and temperal_downsample makes {temporal}": (
                self.scale_factor_temporal not in (None, temporal)
            ),
            "out_channels must be 3 for every pixel of a patch": self.out_channels != 3 * (self.patch_size or 1) ** 2,
        }
        if found := [problem for problem, is_so in problems.items() if is_so]:
            raise ValueError("; ".join(found))

    @property
    def cell(self) -> int:
        """Pixels of a latent cell's side."""
        return int(2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1))

    @property
    def frames_per_latent(self) -> int:
        """Frames that every latent but the first decodes to."""
        return int(2 ** sum(self.temperal_downsample))


@dataclass(frozen=True, kw_only=True)
class Umt5Config:
    """transformers' `UMT5Config`."""

    vocab_size: Words = 250112
    d_model: Size = 512
    d_kv: Size = 64
    d_ff: Size = 1024
    num_layers: Layers = 8
    num_heads: Annotated[int, Field(ge=1, le=1024)] = 6
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=4096)] = 32
    relative_attention_max_distance: Annotated[int, Field(ge=4, le=2**20)] = 128
    dropout_rate: Rate = 0.1
    layer_norm_epsilon: Small = 1e-6
    initializer_factor: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    feed_forward_proj: Literal["gated-gelu", "gated-silu", "gated-relu", "gelu", "relu", "silu"] = "gated-gelu"
    pad_token_id: Token | None = 0
    eos_token_id: Token | None = 1
    decoder_start_token_id: Token | None = 0

    @property
    def num_parameters(self) -> int:
        """Weights of the half that reads."""
        width, inner = self.d_model, self.num_heads * self.d_kv
        positions = self.relative_attention_num_buckets * self.num_heads
        matrices = 3 if self.feed_forward_proj.startswith("gated") else 2
        layer = 4 * width * inner + matrices * width * self.d_ff + 2 * width + positions
        return self.vocab_size * width + self.num_layers * layer + width


@dataclass(frozen=True, kw_only=True)
class ImageVaeConfig:
    """diffusers' `AutoencoderKL`, as far as a latent is decoded by it."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: Annotated[tuple[Literal["DownEncoderBlock2D"], ...], Field(max_length=8)] = (
        "DownEncoderBlock2D",
    )
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], Field(max_length=8)] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=8)
    ] = (64,)
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 1
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 4
    norm_num_groups: Annotated[int, Field(ge=1, le=1024)] = 32
    sample_size: Size = 32
    scaling_factor: Annotated[float, Field(gt=0, le=1e6)] = 0.18215
    shift_factor: None = None
    latents_mean: None = None
    latents_std: None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        count = len(self.block_out_channels)
        if len(self.down_block_types) != count or len(self.up_block_types) != count:
            raise ValueError("block_out_channels, down_block_types and up_block_types must be of one length")
        if odd := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(f"block_out_channels has {odd[0]}, no multiple of norm_num_groups")


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """transformers' `CLIPTextConfig`."""

    vocab_size: Words = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    projection_dim: Size = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    max_position_embeddings: Annotated[int, Field(ge=77, le=2**16)] = 77
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: Small = 1e-5
    attention_dropout: Rate = 0.0
    initializer_range: Annotated[float, Field(ge=0, le=1e3)] = 0.02
    initializer_factor: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    pad_token_id: Token | None = 1
    bos_token_id: Token | None = 49406
    eos_token_id: Token | None = 49407

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is no multiple of num_attention_heads")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Of diffusers' schedulers, what says how a model was trained; steps and shift are settings of the sampler here."""

    prediction_type: str | None = None
    num_train_timesteps: Literal[1000] = 1000


def read_config(folder: Path, component: str, kind: type[T]) -> T:
    """A part's configuration.

    Args:
        folder: of the model.
        component: name of the part's folder.
        kind: which of the dataclasses above.

    Raises:
        ModelError: naming the file, and the keys that are missing, of another type or out of range.
    """
    file = folder / component / "config.json"
    return checked_config(file, read_json(file, plain_utf8=True), kind)


def checked_config(file: Path, values: dict[str, Any], kind: type[T]) -> T:
    """The same of a file that has been read."""
    for key in QUANTIZATIONS:
        if values.get(key) is not None:
            raise ModelError(
                f"{str(file)!r} has a {key}: quantized checkpoints are not supported",
                hint="take the model in bfloat16, float16 or float32",
            )
    try:
        return validated(kind, values)
    except OutsideDataError as error:
        raise ModelError(
            f"{str(file)!r} describes no such part of a model: {error}", hint="download the model again"
        ) from error


def arguments(config: Any) -> dict[str, Any]:
    """A configuration as its library wants it: lists, not tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def left_out(folder: Path, component: str, kind: type[Any]) -> str:
    """Of a configuration, which keys it leaves out and what was taken for them: an end for a hint, or nothing."""
    values = read_json(folder / component / "config.json")
    defaults = {entry.name: getattr(kind(), entry.name) for entry in fields(kind) if entry.name not in values}
    listed = ", ".join(f"{name} ({shown(value)})" for name, value in defaults.items())
    return f"; {component}/config.json leaves out, so that diffusers' defaults are taken: {listed}" if listed else ""


def class_name_of(values: dict[str, Any]) -> str:
    """What a configuration says it is of, for messages and comparison."""
    name = values.get("_class_name")
    return printable(name) if isinstance(name, str) else shown(name)


def check_scheduler(folder: Path, prediction: str) -> None:
    """Finds a model that was trained to predict something else, where the folder has a scheduler's configuration.

    Raises:
        ModelError: naming the key.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_symlink() and not file.exists():
        return
    config = checked_config(file, read_json(file), SchedulerConfig)
    if config.prediction_type not in (None, prediction):
        raise ModelError(
            f"{str(file)!r}: prediction_type is {shown(config.prediction_type)}, and this kind of model is sampled "
            f"by {prediction!r}",
            hint="it is another kind of model, or its scheduler's configuration is not its own",
        )
