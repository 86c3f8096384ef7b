"""`miga convert` of models that take pictures, and of Wan2.2's pairs: every tensor in its place, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from miga.backbones.registry import load_spec
from miga.backbones.tensor_files import Stored
from miga.backbones.wan import convert as converting
from miga.backbones.wan import original
from miga.backbones.wan.config import ClipVisionConfig
from miga.backbones.wan.convert import convert_wan
from miga.backbones.wan.original import config_of, parts_of
from miga.backbones.weight_files import Entry
from miga.errors import ModelError
from tests import wan_layouts as layouts
from tests.wan_layouts import State, wan_transformer

CLIP = ClipVisionConfig(
    hidden_size=20, intermediate_size=40, projection_dim=16, num_hidden_layers=3, num_attention_heads=2, patch_size=14,
    image_size=28, hidden_act="gelu",
)  # fmt: skip
IMAGE_NAMES = (
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    (".attn2.add_k_proj", ".cross_attn.k_img"),
    (".attn2.add_v_proj", ".cross_attn.v_img"),
    (".attn2.norm_added_k", ".cross_attn.norm_k_img"),
)


def image_transformer(seed: int, *, reads: bool = False) -> State:
    torch.manual_seed(seed)
    more: dict[str, Any] = {"image_dim": 20, "added_kv_proj_dim": 256} if reads else {}
    model = WanTransformer3DModel(**layouts.TRANSFORMER, in_channels=36, out_channels=16, **more)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    return model.state_dict()


def wan_names(state: State) -> State:
    """Under the names of Wan's own program."""
    own: State = {}
    plain: State = {}
    for name, tensor in state.items():
        renamed = name
        for ours, theirs in IMAGE_NAMES:
            renamed = renamed.replace(ours, theirs)
        (own if renamed != name else plain)[renamed] = tensor
    return wan_transformer(plain) | own


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return layouts.build().states()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "umt5")


def write(file: Path, state: State) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


def is_same(folder: Path, state: State) -> bool:
    (file,) = folder.glob("*.safetensors")
    found = load_file(file)
    return found.keys() == state.keys() and all(torch.equal(found[name], part) for name, part in state.items())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("takes_pictures", [True, False], ids=["i2v", "t2v"])
def test_a_pair_as_wan_publishes_it(tmp_path: Path, states: dict[str, State], takes_pictures: bool) -> None:
    text = [{name: part + seed for name, part in states["transformer"].items()} for seed in (1, 2)]
    high, low = (image_transformer(1), image_transformer(2)) if takes_pictures else text
    folder = layouts.write_original(tmp_path / "Wan2.2-A14B", states)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "i2v", "in_dim": 36} if takes_pictures else {}
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / file).unlink()
    for name, state in (("high_noise_model", high), ("low_noise_model", low)):
        write(folder / name / "diffusion_pytorch_model.safetensors", wan_names(state))
        (folder / name / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    convert_wan([folder], out)
    assert is_same(out / "transformer", high)
    assert is_same(out / "transformer_2", low)
    spec = load_spec(str(out))
    assert spec.expert_boundary == (0.9 if takes_pictures else 0.875)
    assert spec.image_input == ("channels" if takes_pictures else "held")
    shutil.rmtree(folder / "low_noise_model")
    with pytest.raises(ModelError, match="no transformer for low noise") as caught:
        convert_wan([folder], tmp_path / "half")
    assert "--transformer-2" in caught.value.hint


@pytest.mark.slow
def test_a_pair_of_files(tmp_path: Path, states: dict[str, State], tokenizer: Path) -> None:
    """As ComfyUI has them: told apart by their names, or by the option."""
    files = layouts.write_comfy(tmp_path / "comfy", states)
    high, low = (
        write(tmp_path / f"wan2.2_i2v_{half}_noise_14B.safetensors", wan_names(image_transformer(seed)))
        for seed, half in ((1, "high"), (2, "low"))
    )
    parts: Any = {part: files[part] for part in ("vae", "text_encoder")}
    convert_wan([high, low], tmp_path / "a", parts=parts, tokenizer=tokenizer)
    assert is_same(tmp_path / "a" / "transformer_2", image_transformer(2))
    others = [shutil.copy(file, tmp_path / f"{name}.safetensors") for file, name in ((high, "one"), (low, "two"))]
    by_option = parts | {"transformer": others[0], "transformer_2": others[1]}
    convert_wan([], tmp_path / "b", parts=by_option, tokenizer=tokenizer)
    assert is_same(tmp_path / "b" / "transformer_2", image_transformer(2))
    text = write(tmp_path / "wan2.2_t2v_low_noise.safetensors", wan_names(states["transformer"]))
    with pytest.raises(ModelError, match="not of one size"):
        convert_wan([high, text], tmp_path / "c", parts=parts, tokenizer=tokenizer)


def test_a_model_that_reads_pictures(
    tmp_path: Path, states: dict[str, State], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CLIP's image encoder as ComfyUI has it; its sizes are constants, here those of a tiny one."""
    monkeypatch.setattr(original, "VIT_H", CLIP)
    transformer = image_transformer(3, reads=True)
    torch.manual_seed(4)
    values = {name: getattr(CLIP, name) for name in CLIP.__dataclass_fields__}
    encoder = CLIPVisionModel(CLIPVisionConfig(**values)).state_dict()
    clip = {f"vision_model.{name}": part for name, part in encoder.items()} | {
        "visual_projection.weight": torch.ones(16, 20)
    }
    files = layouts.write_comfy(tmp_path / "comfy", states)
    parts: Any = {part: files[part] for part in ("vae", "text_encoder")}
    parts["transformer"] = write(tmp_path / "i2v.safetensors", wan_names(transformer))
    with pytest.raises(ModelError, match="no image encoder") as caught:
        convert_wan([], tmp_path / "no", parts=parts, tokenizer=tokenizer)
    assert "--image-encoder clip_vision_h.safetensors" in caught.value.hint
    vision = write(tmp_path / "clip_vision_h.safetensors", clip)
    written = convert_wan([vision], tmp_path / "out", parts=parts, tokenizer=tokenizer)
    assert written["left_out"] == 2, "the projection, and the tokenizer in the text encoder's file"
    assert is_same(tmp_path / "out" / "transformer", transformer)
    assert is_same(tmp_path / "out" / "image_encoder", encoder)
    spec = load_spec(str(tmp_path / "out"))
    assert (spec.image_input, spec.needs_image, spec.takes_last_image) == ("channels", True, False)
    plain = parts | {"transformer": files["transformer"]}
    with pytest.raises(ModelError, match="reads no pictures' tokens"):
        convert_wan([vision], tmp_path / "text", parts=plain, tokenizer=tokenizer)
    cut = write(tmp_path / "cut.safetensors", {name: part for name, part in clip.items() if "layers.2" not in name})
    with pytest.raises(ModelError, match=r"image encoder in .* lacks"):
        convert_wan([cut], tmp_path / "cut", parts=parts, tokenizer=tokenizer)


def visual_transformer(state: State, pixels: torch.Tensor, num_heads: int) -> list[torch.Tensor]:
    """`VisionTransformer.forward` of `wan/modules/clip.py` in Wan2.1 (OpenCLIP's), by its own names.

    Args:
        state: `visual.*`.
        pixels: [B, 3, H, W].
        num_heads: of attention.

    Returns:
        What goes into every block, and what comes out of the last, [B, L, C] each.
    """
    own = {name.removeprefix("visual."): tensor for name, tensor in state.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-5)

    patch = own["patch_embedding.weight"].shape[-1]
    x = functional.conv2d(pixels, own["patch_embedding.weight"], stride=patch).flatten(2).permute(0, 2, 1)
    x = torch.cat([own["cls_embedding"].expand(len(x), -1, -1), x], dim=1) + own["pos_embedding"]
    seen = [norm("pre_norm", x)]
    block = 0
    while f"transformer.{block}.norm1.weight" in own:
        place, x = f"transformer.{block}", seen[-1]
        batch, length, width = x.shape
        packed = linear(f"{place}.attn.to_qkv", norm(f"{place}.norm1", x))
        q, k, v = packed.view(batch, length, 3, num_heads, width // num_heads).unbind(2)
        share = (torch.einsum("bihd,bjhd->bhij", q, k) * (width // num_heads) ** -0.5).softmax(-1)
        x = x + linear(f"{place}.attn.proj", torch.einsum("bhij,bjhd->bihd", share, v).reshape(batch, length, width))
        inner = functional.gelu(linear(f"{place}.mlp.0", norm(f"{place}.norm2", x)))
        seen.append(x + linear(f"{place}.mlp.2", inner))
        block += 1
    return seen


def vision_encoder(seed: int) -> State:
    torch.manual_seed(seed)
    values = {name: getattr(CLIP, name) for name in CLIP.__dataclass_fields__}
    model = CLIPVisionModel(CLIPVisionConfig(**values))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model.state_dict()


def test_clip_under_the_names_of_wans_own_program(
    tmp_path: Path, states: dict[str, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as Wan-AI/Wan2.1-I2V-14B-480P lies on the hub; what transformers makes of a picture is what Wan does."""
    monkeypatch.setattr(original, "VIT_H", CLIP)
    transformer, encoder = image_transformer(3, reads=True), vision_encoder(6)
    folder = layouts.write_original(tmp_path / "Wan2.1-I2V-14B-480P", states)
    write(folder / "diffusion_pytorch_model.safetensors", wan_names(transformer))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "i2v", "in_dim": 36}
    (folder / "config.json").write_text(json.dumps(config))
    own = layouts.wan_clip(encoder)
    torch.save(own, folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    written = convert_wan([folder], tmp_path / "out")
    assert written["left_out"] == 4, "the head, the scale, and two of the half that reads texts"
    assert is_same(tmp_path / "out" / "image_encoder", encoder)
    spec = load_spec(str(tmp_path / "out"))
    assert (spec.image_input, spec.needs_image) == ("channels", True)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    loaded = CLIPVisionModel.from_pretrained(tmp_path / "out" / "image_encoder").eval()
    with torch.no_grad():
        seen = loaded(pixels, output_hidden_states=True).hidden_states
    wanted = visual_transformer(own, pixels, CLIP.num_attention_heads)
    assert len(seen) == len(wanted) == CLIP.num_hidden_layers + 1
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def clip_stored(state: State) -> dict[str, Stored]:
    def reader(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    return {
        name: Stored(name, Path("clip.pth"), Entry("F32", tuple(tensor.shape)), reader(tensor))
        for name, tensor in state.items()
    }


def test_every_tensor_of_clip_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is not there, is misshapen or is one too many, it is refused by its name."""
    monkeypatch.setattr(original, "VIT_H", CLIP)
    own = layouts.wan_clip(vision_encoder(6))
    for key in (key for key in own if key.startswith("visual.") and key != "visual.head"):
        (found,) = parts_of(clip_stored({name: tensor for name, tensor in own.items() if name != key}))
        with pytest.raises(ModelError) as lacking:
            config_of(found)
        if match := re.fullmatch(r"visual\.transformer\.(\d)\.attn\.to_qkv\.(\w+)", key):
            named = ", ".join(f"encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}" for letter in "kqv")
            assert lacking.value.message.endswith(f"lacks, by transformers' names, {named}")
        else:
            assert re.search(r"lacks, by transformers' names, [\w.]+$", lacking.value.message), key
        for wrong in (torch.ones(*own[key].shape, 2), torch.cat([own[key]] * 2), own[key][..., :-1]):
            (found,) = parts_of(clip_stored(own | {key: wrong}))
            with pytest.raises(ModelError) as misshapen:
                config_of(found)
            assert misshapen.value.message.endswith(f"has another shape than the other tensors say for {key}")
    (found,) = parts_of(clip_stored(own | {"visual.transformer.0.attn.extra": torch.ones(2)}))
    with pytest.raises(ModelError) as left_over:
        config_of(found)
    assert left_over.value.message.endswith("has no place for visual.transformer.0.attn.extra")


def test_the_published_image_encoder() -> None:
    """Its sizes, on the meta device, as `IMAGE_PARAMETERS` has it; and every tensor of Wan's own file."""
    from miga.backbones.wan.spec import IMAGE_PARAMETERS, module_of

    assert sum(weight.numel() for weight in module_of(original.VIT_H).parameters()) == IMAGE_PARAMETERS
    assert converting.MORE_PARTS == ("transformer_2", "image_encoder")
    width, inner = 1280, 5120
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (width, 3, 14, 14), "cls_embedding": (1, 1, width), "head": (width, 1024),
        "pos_embedding": (1, 16 * 16 + 1, width),
    }  # fmt: skip
    layers = {
        "norm1": (width,), "norm2": (width,), "attn.to_qkv": (3 * width, width), "attn.proj": (width, width),
        "mlp.0": (inner, width), "mlp.2": (width, inner),
    }  # fmt: skip
    places = {f"transformer.{layer}.{name}": shape for layer in range(32) for name, shape in layers.items()}
    for name, shape in {**places, "pre_norm": (width,), "post_norm": (width,)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    textual = {"textual.token_embedding.weight": (250002, 1024), "textual.blocks.0.attn.q.weight": (1024, 1024)}
    whole = {f"visual.{name}": shape for name, shape in shapes.items()} | textual | {"log_scale": ()}
    with torch.device("meta"):
        (found,) = parts_of(clip_stored({name: torch.empty(shape) for name, shape in whole.items()}))
    assert config_of(found) == original.VIT_H
    assert found.left_out == 4
    assert len(found.tensors) == len(shapes) - 1 + 2 * 2 * 32, "all but the head; each to_qkv is three"
