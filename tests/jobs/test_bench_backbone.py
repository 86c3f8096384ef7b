"""`miga bench backbone` and `miga bench gpu`: what they count, what they refuse, and that a reduced model says so."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from jobs.benches import backbone as bench_backbone_module
from jobs.benches import gpu
from jobs.benches.backbone import PARTS, BackboneBench
from jobs.benches.device_clock import MATMUL_SIZES, Timing, count_flops, peak_memory, time_calls
from jobs.benches.frame_cost import LONG_LATENTS, PROFILES, Prices, dce_rows, frame_rows, long_frame_s
from jobs.benches.gpu import GROUPS, Suite, markdown_section, target_rows
from jobs.benches.network_calls import PER_LATENT, UNIFORM, WINDOW_TWO, NetworkCalls
from jobs.benches.overlap import make_apart, make_overlapped
from jobs.cli import main
from jobs.commands import bench as bench_command
from miga.backbones.base import BackboneSpec
from miga.backbones.random_model import PLAIN, RandomModel, Reduction, fill_randomly
from miga.backbones.registry import planned_footprint, planned_spec, random_model, random_names
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.random_model import plain_twin
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from miga.cost import count_calls
from miga.errors import UsageError
from miga.profiles import resolve_config
from tests.alive_bytes import shapes_only
from tests.tiny_wan import TRANSFORMER_CONFIG, build_tiny_wan

TINY = Reduction(scale=0.05, layers=1, channels=0.1)
TINY_OPTIONS = ["--device", "cpu", "--scale", "0.05", "--layers", "1", "--channels", "0.1", "--repeats", "1"]
CPU = torch.device("cpu")
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(autouse=True)
def threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bench sets how many threads the network has; and small products do to try it out."""
    monkeypatch.setitem(MATMUL_SIZES, "cpu", (64, 128))
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def tiny(name: str) -> RandomModel:
    return random_model(name, device=CPU, dtype=torch.float32, reduction=TINY)


# ---- models with random weights ----


@pytest.mark.parametrize("name", ["wan-1.3b", "wan-14b"])
@pytest.mark.slow
def test_wan_at_full_size_has_every_weight(name: str) -> None:
    with shapes_only():
        model = random_model(name, device=CPU, dtype=torch.bfloat16)
        network, vae = model.backbone.network, model.backbone.vae
    architecture = planned_footprint(name)
    assert sum(weight.numel() for weight in network.parameters()) == architecture.transformer_parameters
    assert sum(weight.numel() for weight in vae.parameters()) == architecture.vae_parameters
    assert model.is_full_size
    assert "full size, 21 latents of 480x832" in model.label


@pytest.mark.slow
def test_videocrafter2_at_full_size_has_every_tensor_of_the_checkpoint() -> None:
    with shapes_only():
        model = random_model("videocrafter2", device=CPU, dtype=torch.bfloat16)
        shapes = {name: list(tensor.shape) for name, tensor in model.backbone.network.state_dict().items()}
        num_vae = sum(weight.numel() for weight in model.backbone.vae.parameters())
    recorded = json.loads(gzip.decompress((FIXTURES / "vc2_state_dict.json.gz").read_bytes()))["state_dict"]
    entries = {name: entry["shape"] if isinstance(entry, dict) else entry for name, entry in recorded.items()}

    def below(prefix: str) -> dict[str, list[int]]:
        return {name.removeprefix(prefix): _shape(entry) for name, entry in entries.items() if name.startswith(prefix)}

    assert shapes == below("model.diffusion_model.")
    assert num_vae == sum(math.prod(shape) for shape in below("first_stage_model.").values())
    assert model.is_full_size


def _shape(entry: Any) -> list[int]:
    return list(entry[0]) if entry and isinstance(entry[0], list) else list(entry)


def test_dtypes_are_those_of_a_loaded_model(tmp_path: Path) -> None:
    """Some modules stay in float32 when a checkpoint is loaded in bfloat16."""
    loaded = WanBackbone.from_pretrained(
        build_tiny_wan(tmp_path), dtype=torch.bfloat16, device="cpu", components=("denoiser",)
    )
    with torch.device("meta"):
        random = WanTransformer3DModel(**TRANSFORMER_CONFIG)
    random.rope = WanTransformer3DModel(**TRANSFORMER_CONFIG).rope
    fill_randomly(random, CPU, torch.bfloat16)
    expected = {name: weight.dtype for name, weight in loaded.network.named_parameters()}
    assert {name: weight.dtype for name, weight in random.named_parameters()} == expected
    assert set(expected.values()) == {torch.bfloat16, torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("name", random_names())
def test_outputs_are_finite_and_depend_on_everything(name: str) -> None:
    """Zeros would be faster than a real network's numbers."""
    calls = NetworkCalls(tiny(name))
    with torch.inference_mode():
        clean = calls.windows()[WINDOW_TWO]()
        uniform, per_latent = (calls.forwards()[kind]() for kind in (UNIFORM, PER_LATENT))
        frames = calls.backbone.frame_decoder().decode(clean[0, :1])
    assert isinstance(uniform, torch.Tensor)
    assert torch.isfinite(clean).all()
    assert float((uniform - per_latent).abs().max()) > 1e-3
    assert float(uniform.std()) > 0.1
    assert float(frames.float().std()) > 1.0


def test_the_twin_is_diffusers_own_over_the_same_memory() -> None:
    backbone = tiny("wan-1.3b").backbone
    twin = plain_twin(backbone.network)
    fresh = WanTransformer3DModel.from_config(backbone.network.config)
    fresh.load_state_dict(backbone.network.state_dict())
    x, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, NUM_TEXT_TOKENS, 4096)
    with torch.no_grad():
        expected = fresh(x, torch.tensor([700]), text, return_dict=False)[0]
        assert torch.equal(twin(x, torch.tensor([700]), text, return_dict=False)[0], expected)
    assert not twin._forward_pre_hooks
    ours = dict(backbone.network.named_parameters())
    assert all(weight.data_ptr() == ours[name].data_ptr() for name, weight in twin.named_parameters())


def test_same_weights_again() -> None:
    first, second = (tiny("wan-1.3b").backbone.network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("reduction", "named"),
    [
        ({"scale": 0.0}, "--scale 0"),
        ({"scale": 1.5}, "--scale 1.5"),
        ({"scale": math.nan}, "--scale nan"),
        ({"channels": -0.5}, "--channels -0.5"),
        ({"layers": 0}, "--layers 0"),
        ({"layers": 31}, "--layers 31 is more than wan-1.3b has"),
    ],
)
def test_reductions_that_cannot_be(reduction: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        random_model("wan-1.3b", device=CPU, dtype=torch.float32, reduction=Reduction(**reduction))


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UsageError, match="wan-2b"):
        random_model("wan-2b", device=CPU, dtype=torch.float32)


# ---- counting and timing ----


def test_operations_of_attention_and_of_a_product() -> None:
    """Two products of 2 x heads x queries x keys x channels, and of rows x inner x columns."""
    query, key = torch.randn(2, 3, 50, 16), torch.randn(2, 3, 40, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        assert count_flops(lambda: attend(query, key, key)) == 2 * 2 * 2 * 3 * 50 * 40 * 16
        assert count_flops(lambda: torch.randn(7, 5) @ torch.randn(5, 11)) == 2 * 7 * 5 * 11


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["wan-1.3b", "videocrafter2"])
def test_counted_operations_are_those_of_the_closed_form(name: str) -> None:
    """Wan's formula leaves out what is not in its blocks: that is added here."""
    reduction = Reduction(scale=0.1, layers=1, channels=0.1)
    if name == "wan-1.3b":
        reduction = Reduction(scale=0.2, layers=1, channels=0.2)
    model = random_model(name, device=CPU, dtype=torch.float32, reduction=reduction)
    forwards = NetworkCalls(model).forwards()
    with torch.no_grad():
        counted = count_flops(forwards[PLAIN if name == "wan-1.3b" else UNIFORM])
    expected = model.spec.forward_flops
    if name == "wan-1.3b":
        architecture = planned_footprint(name, reduction)
        width, tokens = architecture.width, 21 * architecture.tokens_per_latent(model.spec.height, model.spec.width)
        text = 2 * NUM_TEXT_TOKENS * width * (architecture.text_width + width)
        time = 2 * width * (architecture.frequency_width + width) + 2 * width * 6 * width
        expected += text + time + 2 * 2 * tokens * 64 * width  # patches in and out
    assert counted == pytest.approx(expected, rel=0.02)


def test_calls_are_timed_in_turn_there_and_back() -> None:
    made: list[str] = []
    timings = time_calls({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, CPU, num_repeats=3)
    assert "".join(made) == "ab" + "ab" + "ba" + "ab"
    assert {name: timing.num for name, timing in timings.items()} == {"a": 3, "b": 3}
    made.clear()
    hurried = time_calls({"a": lambda: made.append("a")}, CPU, num_repeats=9, most_s=0.0, is_warm=True)
    assert len(made) == hurried["a"].num == 2


def test_a_timing_is_median_and_ends() -> None:
    timing = Timing.of([3.0, 1.0, 2.0, 10.0])
    assert (timing.median_s, timing.low_s, timing.high_s, timing.num) == (2.5, 1.0, 10.0, 4)


def test_peak_memory_sees_what_is_freed_again() -> None:
    size = 96 * 2**20
    peak = peak_memory(lambda: torch.ones(size // 4).sum(), CPU)
    assert peak is not None
    assert 0.9 * size <= peak.beside_bytes <= 2 * size
    assert peak.total_bytes == peak.before_bytes + peak.beside_bytes


# ---- seconds a frame ----

SPECS = {name: planned_spec(name) for name in ("wan-1.3b", "videocrafter2")}
PRICES = Prices(two_branches_s=2.0, one_branch_s=0.5, first_latent_s=0.25, latent_s=0.125, frame_s=0.0625)


def test_seconds_a_frame_are_calls_times_prices() -> None:
    spec = SPECS["videocrafter2"]
    configs = {name: resolve_config(name, spec) for name in PROFILES}
    rows = {row["profile"]: row for row in frame_rows(configs, PRICES, 128, spec, True)}
    # FIFO-Diffusion: the base clip, then 64 / 8 calls for each of 128 + 64 - 16 passes
    assert rows["fifo"]["calls"] == 64 + 8 * (128 + 64 - 16)
    assert rows["fifo"]["denoise"] == pytest.approx(2.0 * rows["fifo"]["calls"] / 128)
    assert rows["fifo"]["decode"] == pytest.approx((0.25 + 127 * 0.125) / 128)
    assert rows["fifo"]["s a frame"] == pytest.approx(rows["fifo"]["denoise"] + rows["fifo"]["decode"] + 0.0625)
    assert rows["fifo"]["s a frame more"] == pytest.approx(8 * 2.0 + 0.125 + 0.0625)
    # swift: 9 levels of the base clip and of Stage 2 without guidance
    assert rows["swift"]["of one branch"] == 9 + count_calls(configs["swift"], 128).stage2
    assert rows["paper"]["a search adds"] == pytest.approx(count_calls(configs["paper"], 128).per_search * 2.0 / 128)
    assert [rows[name].get("the paper's") for name in PROFILES] == [7.48, 7.53, 9.16, ""]


def test_the_papers_figures_stand_beside_a_full_model_alone() -> None:
    spec = planned_spec("videocrafter2", TINY)
    configs = {"paper": resolve_config("paper", spec)}
    assert "the paper's" not in frame_rows(configs, PRICES, 128, spec, False)[0]
    wan = {"paper": resolve_config("paper", SPECS["wan-1.3b"])}
    assert "the paper's" not in frame_rows(wan, PRICES, 41, SPECS["wan-1.3b"], True)[0]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_frame_more_is_what_a_longer_video_costs_more(name: str, profile: str) -> None:
    spec = SPECS[name]
    config = resolve_config(profile, spec)
    lengths = (LONG_LATENTS, 2 * LONG_LATENTS)
    total = [
        frame_rows({profile: config}, PRICES, length, spec, True)[0]["s a frame"] * spec.num_frames(length)
        for length in lengths
    ]
    more = spec.num_frames(lengths[1]) - spec.num_frames(lengths[0])
    assert long_frame_s(config, PRICES, spec) == pytest.approx((total[1] - total[0]) / more)


def test_searches_that_the_target_leaves_room_for() -> None:
    """So many of the evaluations, and MIGA with DCE takes 1.08 times as long as without."""
    spec = SPECS["videocrafter2"]
    paper, without = (resolve_config(name, spec) for name in ("paper", "no-guidance-no-reflection"))
    (row,) = dce_rows(paper, without, PRICES, spec)
    share = float(row["searches that 1.08 times leaves room for"].split("%")[0]) / 100
    num_evaluations = 1 / 4  # one a group of four frames
    assert row["evaluations a frame"] == pytest.approx(num_evaluations, rel=0.01)
    searches_s = share * num_evaluations * count_calls(paper, 128).per_search * 2.0
    with_s, without_s = (long_frame_s(config, PRICES, spec) for config in (paper, without))
    assert (with_s + searches_s) / without_s == pytest.approx(1.08, abs=0.01)


# ---- parts ----


@pytest.mark.slow
def test_overlapped_frames_are_those_of_one_after_the_other() -> None:
    model = tiny("wan-1.3b")
    config = resolve_config("swift", model.spec, {"num_steps": 4, "handoff_level": 2})
    apart, overlapped = (make(model, config, 5) for make in (make_apart, make_overlapped))
    assert apart.num_frames == overlapped.num_frames == 17
    assert apart.num_calls == overlapped.num_calls == count_calls(config, 5).total
    assert apart.digest == overlapped.digest


def test_attention_that_fails_is_named_and_the_usual_one_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = BackboneBench(tiny("wan-1.3b"), 1e12, num_repeats=1)
    names = ["native", "_native_math", "flash", "sage_hub"]
    monkeypatch.setattr(bench.model, "attention_backends", lambda: names)
    rows = {row["attention"]: row for row in bench.attention()}
    assert set(rows) == set(names)
    assert "flash-attn" in rows["flash"]["why not"]
    assert "downloads" in rows["sage_hub"]["why not"]
    assert rows["_native_math"]["largest difference"] < 1e-4
    processor = bench.model.backbone.network.blocks[0].attn1.processor
    assert processor._attention_backend.value == "native"


def test_a_call_without_memory_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = BackboneBench(tiny("wan-1.3b"), 1e12, num_repeats=1)
    forwards = bench.network.forwards()

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(bench.network, "forwards", lambda: forwards | {PLAIN: fails})
    rows = {row["call"]: row for row in bench.calls()}
    assert "out of memory" in rows[PLAIN]["why not"]
    assert rows[PER_LATENT]["TFLOP"] > 0


# ---- the commands ----


@pytest.mark.parametrize(
    ("name", "parts"), [("wan-1.3b", ["calls", "decode", "frames", "dce"]), ("videocrafter2", ["decode"])]
)
@pytest.mark.slow
def test_bench_backbone_on_a_cpu_says_that_it_is_reduced(
    name: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "backbone", "--model", name, "--json", *TINY_OPTIONS, "--parts", *parts]) == 0
    tables = json.loads(capsys.readouterr().out)
    rates, *others = tables
    assert rates.startswith("matrix products in float32 on cpu")
    assert len(others) == len(parts)
    for title in others:
        assert f"{name} REDUCED to" in title
        assert "no figure of the published model" in title
        assert "full size" not in title
    if "calls" in parts:
        calls = {row["call"]: row for row in tables[others[0]]}
        assert {PLAIN, UNIFORM, PER_LATENT, WINDOW_TWO} <= calls.keys()
        assert {"of matmul", "TFLOP/s", "to one time step"} <= calls[WINDOW_TWO].keys()
        assert [row["profile"] for row in tables[others[2]]] == list(PROFILES)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--scale", "0"], "--scale 0"),
        (["--channels", "2"], "--channels 2"),
        (["--layers", "0"], "--layers 0"),
        (["--layers", "99"], "--layers 99"),
        (["--frames", "100"], "97 or 101"),
        (["--profiles", "papper"], "paper"),
        (["--repeats", "0"], "--repeats 0"),
        (["--device", "cuda"], "--device cpu"),
        (["--device", "tpu9"], "--device tpu9"),
    ],
)
def test_bench_backbone_refuses(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_backbone_module, "matmul_rates", lambda *_: pytest.fail("measured before it was refused"))
    assert main(["bench", "backbone", *options]) == 2
    assert named in capsys.readouterr().err


def test_names_that_the_command_line_knows_without_torch() -> None:
    assert tuple(PARTS) == bench_command.PARTS
    assert set(bench_command.RANDOM_MODELS) == set(random_names())
    assert bench_command.FRAME_PROFILES == PROFILES
    assert {part for _, parts in GROUPS for part in parts} == set(PARTS)
    assert {name for name, _ in GROUPS} == set(random_names())


def test_without_a_gpu_bench_gpu_names_bench_backbone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "gpu", "--out", str(tmp_path / "gpu.md")]) == 2
    error = capsys.readouterr().err
    assert "CUDA" in error
    assert "miga bench backbone" in error
    assert not list(tmp_path.iterdir())


# ---- the suite, tried out on a CPU ----


class Clock:
    """Seconds that pass when it is told so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.slow
def test_the_suite_writes_one_section(tmp_path: Path) -> None:
    file = tmp_path / "gpu.md"
    suite = Suite(CPU, torch.float32, 1e9, num_repeats=1, out=file, reduction=TINY)
    tables = suite.run([("wan-1.3b", ("calls", "decode", "frames"))])
    text = file.read_text()
    assert text.startswith("## GPU: `miga bench gpu` on cpu")
    assert text.count("\n## ") == 0
    assert text.count("### ") == len(tables)
    for fact in ("torch", "diffusers", "transformers", "date", "command", "Python"):
        assert f"| {fact} " in text
    assert "full size" not in text
    assert not suite.dropped
    assert {row["what"] for row in tables["targets, on an H200"]} == {
        gpu.TARGETS["of matmul"][0],
        gpu.TARGETS["per latent, time"][0],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.md"]


@pytest.mark.slow
def test_what_there_is_no_time_for_is_dropped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = Clock(), []

    def part(name: str, takes_s: float) -> Any:
        def measure(bench: BackboneBench) -> list[dict[str, Any]]:
            ran.append(name)
            clock.now_s += takes_s
            return [{"part": name}]

        return name, measure

    monkeypatch.setattr(gpu, "PARTS", {"a": part("a", 50.0), "b": part("b", 60.0), "c": part("c", 1.0)})
    monkeypatch.setattr(gpu, "matmul_rates", lambda *_: {1: 1e12})
    monkeypatch.setattr(Suite, "expected_s", lambda self, name, what: {"a": 40.0, "b": 60.0, "c": 5.0}[what])
    suite = Suite(CPU, torch.float32, 100.0, reduction=TINY, clock=clock)
    tables = suite.run([("wan-1.3b", ("a", "b")), ("wan-1.3b", ("c",)), ("wan-1.3b", ("b",))])
    assert ran == ["a", "c"]
    assert [(row["part"], row["why"].split(":")[0]) for row in tables["not measured"]] == [
        ("b", "dropped"),
        ("b", "dropped"),
    ]
    assert "about 1.0 min, and 0.8 min" in tables["not measured"][0]["why"]


def test_expectations_grow_with_the_model_and_follow_what_was_timed() -> None:
    suite = Suite(CPU, torch.float32, 1e9)
    suite._rate = 800e12
    small, large = (suite.expected_s(name, "calls") for name in ("wan-1.3b", "wan-14b"))
    assert large > 3 * small
    before = suite.expected_s("wan-1.3b", "whole-video")
    suite._forward_s["wan-1.3b"] = 10.0
    assert suite.expected_s("wan-1.3b", "whole-video") > 2 * before


def test_on_an_h200_the_budget_holds_the_most_important() -> None:
    """At half of 800 TFLOP/s everything but whole videos of Wan and compiling is expected within 20 minutes."""
    suite = Suite(CPU, torch.bfloat16, 1200.0)
    suite._rate = 800e12
    expected = [suite.expected_s(name, part) for name, parts in GROUPS[:3] for part in parts]
    assert sum(expected) < 600.0


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: BackboneBench) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "PARTS", {"a": ("a", fails), "b": ("b", lambda bench: [{"it": "ran"}])})
    monkeypatch.setattr(gpu, "matmul_rates", lambda *_: {1: 1e12})
    suite = Suite(CPU, torch.float32, 1e9, reduction=TINY)
    tables = suite.run([("wan-1.3b", ("a", "b"))])
    assert [{"it": "ran"}] in tables.values()
    assert tables["not measured"] == [
        {
            "model": "wan-1.3b",
            "part": "a",
            "why": "failed: RuntimeError: CUDA error: an illegal memory access was encountered",
        }
    ]


def test_a_file_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    with pytest.raises(gpu.OutputError, match="no-such"):
        Suite(CPU, torch.float32, 60.0, out=tmp_path / "no-such" / "gpu.md")


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        ("of matmul", 0.62, "yes"),
        ("of matmul", 0.49, "no"),
        ("per latent, time", 0.004, "yes"),
        ("per latent, memory", 0.0132, "no"),
        ("guidance", 1.03, "yes"),
        ("not hidden", 0.05, "no"),
    ],
)
def test_targets(name: str, value: float, met: str) -> None:
    (row,) = target_rows("wan-1.3b", {name: value})
    assert row["met"] == met


def test_the_section_is_markdown() -> None:
    text = markdown_section("NVIDIA H200", {"machine": [{"what": "driver", "is": "570"}], "not measured": []})
    assert text == (
        "## GPU: `miga bench gpu` on NVIDIA H200\n\n"
        "### Machine\n\n| what   | is  |\n| ------ | --- |\n| driver | 570 |\n\n### Not measured\n\n(none)\n"
    )


def test_specs_of_reduced_models_are_those_of_what_is_made() -> None:
    for name in random_names():
        model: RandomModel = tiny(name)
        spec: BackboneSpec = planned_spec(name, TINY)
        assert model.spec == spec == replace(spec)
        frames = model.backbone.frame_decoder().decode(torch.zeros(1, *spec.latent_shape))
        assert tuple(frames.shape[1:3]) == (spec.height, spec.width)
