"""Settings: resolved in layers, and refused with the field, what it takes and why."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from miga.backbones.base import BackboneSpec
from miga.errors import ConfigError
from miga.methods import methods
from miga.profiles import check_overrides, field_names, levels_at, read_config, resolve_config, stored_values
from miga.schedule import schedule_for
from tests.miga.closed_form import PROFILES, make_config, make_fifo_config

SPEC = BackboneSpec("wan", "test", "0", 21, 16, 60, 104, 480, 832, 16)


def test_the_published_settings_of_wan() -> None:
    config = resolve_config("paper", SPEC)
    assert (config.num_steps, config.window, config.stride, config.zigzag_width) == (54, 21, 10, 7)
    assert (config.handoff_level, config.num_guidance_latents, config.flow_shift) == (10, 4, 5.0)
    assert (config.self_reflection, config.reflection_threshold, config.num_candidates) == (True, 0.01, 3)
    assert (config.num_eval_latents, config.num_reference_latents, config.judged_group) == (7, 14, 10)
    assert (config.num_base_groups, config.queue_length) == (3, 315)
    fifo = resolve_config("fifo", SPEC)
    assert (fifo.method, fifo.lookahead, fifo.queue_length) == ("fifo", True, 54)


def test_later_layers_win() -> None:
    spec = replace(SPEC, sampler={"num_steps": 30, "handoff_level": 6})
    config = resolve_config("paper", spec, {"handoff_level": 4, "self_reflection": False})
    assert (config.num_steps, config.handoff_level, config.self_reflection) == (30, 4, False)
    assert config.profile == "paper"
    assert resolve_config("paper", replace(SPEC, window=14)).stride == 7
    assert resolve_config("paper", SPEC, {"stride": 5}).stride == 5


@pytest.mark.sampled(3)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_every_profile_resolves_and_can_be_stored(profile: str, family: str) -> None:
    config = resolve_config(profile, replace(SPEC, family=family, window={"wan": 21, "videocrafter2": 16}[family]))
    assert read_config(json.loads(json.dumps(config.to_dict())), "run.json") == config
    assert set(config.to_dict()) == set(field_names(config.method))


REFLECT = {"self_reflection": True}
OUT_OF_RANGE: list[tuple[dict[str, Any], str, str]] = [
    ({"num_steps": 0}, "num_steps", "at least 1"),
    ({"window": 1, "stride": 1}, "window", "at least 2"),
    ({"stride": 0}, "stride", "1 to window = 6"),
    ({"stride": 7}, "stride", "1 to window = 6"),
    ({"guidance_scale": -0.5}, "guidance_scale", "0 or more"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "0 or more"),
    ({"guidance_scale": float("inf")}, "guidance_scale", "0 or more"),
    ({"flow_shift": 0.0}, "flow_shift", "above 0"),
    ({"flow_shift": float("nan")}, "flow_shift", "above 0"),
    (
        {"zigzag_width": 4},
        "zigzag_width",
        "a divisor of window = 6, one of [1, 2, 3, 6]: the base clip must fill whole",
    ),
    ({"zigzag_width": 0}, "zigzag_width", "a divisor of window = 6"),
    ({"zigzag_width": 12}, "zigzag_width", "a divisor of window = 6"),
    ({"handoff_level": 0}, "handoff_level", "1 to num_steps = 12: the level that Stage 1's queue begins at"),
    ({"handoff_level": 13}, "handoff_level", "1 to num_steps = 12: the level that Stage 1's queue begins at"),
    ({"guidance_low_level": 0}, "guidance_low_level", "at least 1"),
    ({"guidance_high_level": 13}, "guidance_high_level", "guidance_low_level = 1 to num_steps = 12"),
    ({"guidance_low_level": 5, "guidance_high_level": 4}, "guidance_high_level", "guidance_low_level = 5 to"),
    ({"eta": 0.5}, "eta", "0: solver 'unipc' has no eta"),
    ({"solver": "ddim", "eta": 1.5}, "eta", "0 to 1"),
    ({"timesteps": (750, 1000)}, "timesteps", "falling whole numbers from 1000 to 1"),
    ({"timesteps": (1001, 500)}, "timesteps", "falling whole numbers from 1000 to 1"),
    ({"timesteps": (1000, 500), "solver": "renoise"}, "num_steps", "the 2 entries of timesteps"),
    ({"windows_per_batch": 0}, "windows_per_batch", "at least 1"),
    ({"position_0_context": True, "stride": 6, "num_guidance_latents": 0}, "stride", "1 to 5: a window must hold"),
    ({"num_guidance_latents": -1}, "num_guidance_latents", "0 to 3: a guided window must still hold its stride of 3"),
    ({"num_guidance_latents": 4}, "num_guidance_latents", "0 to 3: a guided window must still hold its stride of 3"),
    (REFLECT | {"reflection_threshold": float("nan")}, "reflection_threshold", "a finite number"),
    (REFLECT | {"num_candidates": 0}, "num_candidates", "at least 1"),
    (REFLECT | {"judged_group": 0}, "judged_group", "at least 1 (the last group of the queue)"),
    (REFLECT | {"num_eval_latents": 0}, "num_eval_latents", "1 to 6, the latents judged from on"),
    (REFLECT | {"num_eval_latents": 7}, "num_eval_latents", "1 to 6, the latents judged from on"),
    (
        REFLECT | {"num_reference_latents": 0},
        "num_reference_latents",
        "num_reflection_guidance_latents = 4: a candidate",
    ),
    (
        REFLECT | {"num_reference_latents": 5},
        "num_reference_latents",
        "num_reflection_guidance_latents = 4: a candidate",
    ),
    (REFLECT | {"judged_group": 8}, "judged_group", "(there is room for 2)"),
    (REFLECT | {"judged_group": 30}, "judged_group", "(there is room for 0)"),
]
FIFO_OUT_OF_RANGE: list[tuple[dict[str, Any], str, str]] = [
    ({"num_steps": 5}, "num_steps", "at least window = 6: the base clip fills the last `window` places"),
    ({"stride": 4}, "stride", "1 to 3: each window writes its right half"),
    ({"window": 7, "stride": 5}, "stride", "1 to 4: each window writes its right half"),
]


@pytest.mark.parametrize(
    ("make", "settings", "name", "allowed"),
    [(make_config, *case) for case in OUT_OF_RANGE] + [(make_fifo_config, *case) for case in FIFO_OUT_OF_RANGE],
)
def test_out_of_range(make: Any, settings: dict[str, Any], name: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**settings)
    assert caught.value.message.startswith(f"sampler.{name} = ")
    assert "(profile 'test')" in caught.value.message
    assert allowed in caught.value.hint


def test_the_ends_of_the_ranges_are_admitted() -> None:
    for make, settings in (
        (make_config, {"handoff_level": 9}),
        (make_config, {"handoff_level": 12}),
        (make_config, {"handoff_level": 1, "num_guidance_latents": 3}),
        (make_config, {"stride": 6, "num_guidance_latents": 0}),
        (make_config, {"num_steps": 4, "handoff_level": 1}),
        (make_config, REFLECT | {"judged_group": 7, "num_eval_latents": 14, "num_reference_latents": 4}),
        (make_config, {"num_candidates": 0}),  # not used where self-reflection is off
        (make_fifo_config, {"num_steps": 6}),
        (make_fifo_config, {"window": 7, "stride": 4}),
    ):
        assert make(**settings).to_dict().items() >= settings.items()


def test_unknown_profile() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("papper", SPEC)
    assert "unknown profile 'papper'" in caught.value.message
    assert caught.value.hint.startswith("did you mean 'paper'? profiles: ")
    with pytest.raises(ConfigError) as caught:
        resolve_config("zzz", SPEC)
    assert caught.value.hint.startswith("profiles: swift, paper, released, fifo")


def test_unknown_key() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("paper", SPEC, {"num_step": 54})
    assert caught.value.message == "unknown key sampler.num_step"
    assert caught.value.hint.startswith("did you mean 'num_steps'? keys: method, num_steps, ")
    with pytest.raises(ConfigError, match=r"unknown key sampler\.profile"):
        resolve_config("paper", SPEC, {"profile": "fifo"})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("num_steps", 54.7, "int"),
        ("num_steps", 54.0, "int"),
        ("num_steps", True, "int"),
        ("num_steps", "3", "int"),
        ("num_steps", None, "int"),
        ("num_steps", [54], "int"),
        ("guidance_scale", "5", "float"),
        ("guidance_scale", True, "float"),
        ("self_reflection", 1, "bool"),
        ("self_reflection", "true", "bool"),
        ("method", 3, "str"),
        ("method", True, "str"),
    ],
)
def test_wrong_type(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("paper", SPEC, {key: value})
    assert caught.value.message == f"sampler.{key} = {value!r} has the wrong type"
    assert caught.value.hint == f"it takes a value of type {wanted}"


def test_right_types() -> None:
    overrides = {"num_steps": 54, "guidance_scale": 5, "flow_shift": 3.0, "self_reflection": False, "method": "miga"}
    check_overrides(overrides)
    config = resolve_config("paper", SPEC, overrides)
    assert {name: getattr(config, name) for name in overrides} == overrides


def test_unknown_method() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("paper", SPEC, {"method": "swift"})
    assert caught.value.message == "sampler.method = 'swift' is unknown"
    assert caught.value.hint == (
        "it is one of 'miga', 'released', 'fifo', 'scalingnoise', 'unified', 'causal', 'chain', 'direct', 'freenoise', "
        "'freelong', 'freepca', 'riflex'"
    )


@pytest.mark.sampled(7)
@pytest.mark.parametrize("family", ["wan", "mine"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_under_another_method(profile: str, family: str) -> None:
    """It is resolved, or refused by the name of a setting that the other method needs and nobody says, or for what the
    model, of which nothing is known, lacks."""
    refused = []
    for method in methods():
        try:
            config = resolve_config(profile, replace(SPEC, family=family), {"method": method})
        except ConfigError as error:
            refused.append(error.message.partition(" is ")[0].partition(" = ")[0])
        else:
            assert (config.method, config.profile) == (method, profile)
    lacks = (f"profile {profile!r} changes attention along the frames", f"profile {profile!r} lowers a frequency of")
    settings = {each for each in refused if not each.startswith(lacks)}
    assert settings <= {"sampler.released_branch", "sampler.num_beams", "sampler.guidance_scale"}


def test_an_override_that_the_profile_does_not_read_is_refused() -> None:
    for profile, name, value in (
        ("fifo", "zigzag_width", 2),
        ("stage-2-only", "num_guidance_latents", 2),
        ("released", "drain", True),
        ("paper", "num_beams", 2),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve_config(profile, SPEC, {name: value})
        assert caught.value.message == f"sampler.{name} does nothing in profile {profile!r}"
        assert "leave it out" in caught.value.hint


def test_swift_keeps_most_of_a_window_and_guides_stage_1_alone() -> None:
    wan = resolve_config("swift", SPEC)
    assert (wan.drain, wan.self_reflection, wan.position_0_context) == (True, False, True)
    assert (wan.stride, wan.unified_stride) == (14, 15)  # of 17 local latents; of 20
    assert (wan.guidance_low_level, wan.guidance_high_level) == (wan.handoff_level, wan.num_steps)
    videocrafter2 = resolve_config("swift", replace(SPEC, family="videocrafter2", window=16))
    assert (videocrafter2.position_0_context, videocrafter2.stride, videocrafter2.unified_stride) == (False, 8, 8)
    own = resolve_config("swift", SPEC, {"stride": 10, "guidance_low_level": 1, "handoff_level": 5})
    assert (own.stride, own.unified_stride, own.guidance_low_level) == (10, 11, 1)
    assert resolve_config("swift", SPEC, {"handoff_level": 5}).guidance_low_level == 5


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
@pytest.mark.parametrize("num_steps", [4, 5, 8, 12, 20, 30, 40, 50, 54, 64, 100, 500])
def test_stage_2_takes_over_at_the_same_noise_whatever_the_number_of_steps(family: str, num_steps: int) -> None:
    """A level is a noise: diffusers' `num_inference_steps=20` is not to hand over latents that are noisier."""
    spec = replace(SPEC, family=family, window={"wan": 21, "videocrafter2": 16}[family])
    published = resolve_config("swift", spec)
    config = resolve_config("swift", spec, {"num_steps": num_steps, **levels_at("swift", spec, num_steps, {})})
    noises = [schedule_for(each).sigma / schedule_for(each).alpha for each in (published, config)]
    wanted = float(noises[0][published.handoff_level - 1])
    nearest = int((noises[1][1:].clamp_max(1e9).log() - math.log(wanted)).abs().argmin()) + 1
    assert config.handoff_level >= 2, "Stage 2 has a step to take"
    assert abs(config.handoff_level - 1 - nearest) <= 1
    if num_steps >= published.num_steps:
        assert float(noises[1][config.handoff_level - 1]) == pytest.approx(wanted, rel=0.06)
    assert levels_at("swift", spec, published.num_steps, {}) == {}


def test_levels_at_another_number_of_steps() -> None:
    assert levels_at("paper", SPEC, 20, {}) == {"handoff_level": 4, "judged_group": 4}
    assert levels_at("swift", SPEC, 20, {"handoff_level": 10}) == {}, "what is said holds"
    assert "handoff_level" not in levels_at("no-stage-2", SPEC, 20, {})
    own = replace(SPEC, sampler={"num_steps": 30, "handoff_level": 7})
    assert levels_at("swift", own, 10, {})["handoff_level"] == 3, "the model's own are at its own steps"
    assert levels_at("fifo", SPEC, 30, {}) == {}
    assert levels_at("swift", replace(SPEC, family="of mine"), 20, {}) == {}, "those are in proportion already"
    paper = resolve_config("paper", SPEC, {"num_steps": 4, **levels_at("paper", SPEC, 4, {})})
    assert (paper.handoff_level, paper.judged_group) == (2, 1)


def test_too_few_steps_are_refused_with_what_goes_with_them() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.handoff_level = 10 is out of range") as caught:
        resolve_config("swift", SPEC, {"num_steps": 8})
    assert caught.value.hint.endswith("; with num_steps = 8 goes handoff_level = 2, judged_group = 1")
    resolve_config("swift", SPEC, {"num_steps": 8, "handoff_level": 2, "judged_group": 1})
    with pytest.raises(ConfigError) as caught:
        resolve_config("swift", SPEC, {"stride": 99})
    assert "goes" not in caught.value.hint


def test_few_step_checkpoints() -> None:
    distilled = {"timesteps": [1000, 750, 500, 250], "solver": "renoise", "guidance_scale": 1.0, "handoff_level": 2}
    config = resolve_config("swift", SPEC, distilled)
    assert (config.num_steps, config.timesteps, config.num_early_groups) == (4, (1000, 750, 500, 250), 1)
    assert config.queue_length == 21
    with pytest.raises(ConfigError) as caught:
        resolve_config("swift", SPEC, distilled | {"solver": "unipc"})
    assert caught.value.message == "sampler.solver = 'unipc' cannot step through sampler.timesteps"
    with pytest.raises(ConfigError, match=r"sampler\.timesteps are those of flow-matching models"):
        resolve_config(
            "swift",
            replace(SPEC, family="videocrafter2", window=16, noise_schedule="ddim"),
            {**distilled, "zigzag_width": 8},
        )
    with pytest.raises(ConfigError) as caught:
        resolve_config("swift", SPEC, distilled | {"timesteps": [1000.0]})
    assert caught.value.hint == "it takes a list of whole numbers"


def test_the_noise_of_ddim_goes_with_ddim() -> None:
    videocrafter2 = replace(SPEC, family="videocrafter2", window=16, noise_schedule="ddim")
    assert (resolve_config("paper", videocrafter2).solver, resolve_config("paper", videocrafter2).eta) == ("ddim", 1.0)
    assert resolve_config("paper", videocrafter2, {"solver": "euler"}).eta == 0.0


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("paper", SPEC, {"guidance_scale": 10**400})
    assert caught.value.hint == "it takes a number that a float holds"


@pytest.mark.parametrize("overrides", [{"num_steps": 10**400}, {"window": -(10**400)}, {"judged_group": 2**63}])
@pytest.mark.parametrize("family", ["wan", "mine"])
def test_whole_numbers_beyond_all_use_are_refused(overrides: dict[str, Any], family: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config("paper", replace(SPEC, family=family), overrides)
    assert caught.value.hint == "it takes a whole number of at most 63 bits"
    assert len(caught.value.message) < 200


def test_a_window_beyond_the_model_s_is_refused_at_once() -> None:
    """Settings in proportion to it are not looked for first."""
    with pytest.raises(ConfigError, match="is more than 'test' was trained on"):
        resolve_config("paper", replace(SPEC, family="mine", name="test"), {"window": 10**15})


@pytest.mark.parametrize(("profile", "overrides"), [(["paper"], None), ("paper", [1]), ("paper", {1: 2}), (None, None)])
def test_what_is_no_profile_and_no_settings(profile: Any, overrides: Any) -> None:
    with pytest.raises(ConfigError):
        resolve_config(profile, SPEC, overrides)


# ---- the record of a run ----


@pytest.mark.parametrize("profile", PROFILES)
def test_a_record_is_read_back(profile: str) -> None:
    config = resolve_config(profile, SPEC)
    assert read_config(json.loads(json.dumps(config.to_dict())), "run.json") == config


RECORD = resolve_config("paper", SPEC).to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "sampler holds no settings"),
        ([], "sampler holds no settings"),
        ({}, "sampler.profile is missing"),
        ({name: value for name, value in RECORD.items() if name != "eta"}, "sampler.eta is missing"),
        (RECORD | {"speed": 1}, "unknown key sampler.speed"),
        (RECORD | {"\x1b[2J": 1}, "unknown key sampler.\\u001b[2J"),
        (RECORD | {"profile": 3}, "sampler.profile = 3 has the wrong type"),
        (RECORD | {"num_steps": "54"}, "sampler.num_steps = '54' has the wrong type"),
        (RECORD | {"num_steps": 54.0}, "sampler.num_steps = 54.0 has the wrong type"),
        (RECORD | {"num_steps": True}, "sampler.num_steps = True has the wrong type"),
        (RECORD | {"num_steps": None}, "sampler.num_steps = None has the wrong type"),
        (RECORD | {"num_steps": 0}, "sampler.num_steps = 0 is out of range"),
        (RECORD | {"timesteps": None}, "sampler.timesteps = None has the wrong type"),
        (RECORD | {"timesteps": ["x"]}, "sampler.timesteps = ['x'] has the wrong type"),
        (RECORD | {"method": "sora"}, "sampler.method = 'sora' is unknown"),
        (RECORD | {"flow_shift": {}}, "sampler.flow_shift = {} has the wrong type"),
        (RECORD | {"flow_shift": 10**400}, "has the wrong type"),
    ],
)
def test_a_record_that_cannot_be(values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(values, "s3://bucket/run.json")
    assert caught.value.message.startswith("s3://bucket/run.json: ")
    assert message in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 300


# ---- what earlier versions noted: the settings of all methods beside each other ----

EARLIER: dict[str, Any] = {
    "profile": "paper", "method": "miga", "num_steps": 54, "window": 21, "stride": 10, "unified_stride": 10,
    "zigzag_width": 7, "handoff_level": 10, "num_guidance_latents": 4, "guidance_scale": 5.0, "guidance_low_level": 1,
    "guidance_high_level": 54, "solver": "unipc", "eta": 0.0, "flow_shift": 5.0, "timesteps": [], "drain": False,
    "position_0_context": False, "windows_per_batch": 1, "self_reflection": True, "reflection_threshold": 0.01,
    "num_eval_latents": 7, "num_reference_latents": 14, "num_reflection_guidance_latents": 14, "num_candidates": 3,
    "judged_group": 10, "lookahead": True, "num_beams": 0, "released_branch": "",
}  # fmt: skip
WITHOUT_QUEUE = {"zigzag_width": 1, "handoff_level": 1, "num_guidance_latents": 0, "self_reflection": False}
EARLIER_PROFILES: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"method": "released", "released_branch": "wan"},
    "fifo": {"method": "fifo", **WITHOUT_QUEUE},
    "scalingnoise": {
        "method": "fifo", **WITHOUT_QUEUE, "num_beams": 3, "num_candidates": 5, "num_eval_latents": 1
    },
    "stage-2-only": {"method": "unified", **WITHOUT_QUEUE},
}  # fmt: skip


@pytest.mark.parametrize("profile", EARLIER_PROFILES)
def test_a_record_of_an_earlier_version_is_read(profile: str) -> None:
    noted = EARLIER | {"profile": profile} | EARLIER_PROFILES[profile]
    assert read_config(noted, "run.json") == resolve_config(profile, SPEC)
    assert stored_values(noted) == json.loads(json.dumps(resolve_config(profile, SPEC).noted()))


def test_what_no_method_knows_is_not_left_out() -> None:
    assert stored_values(EARLIER | {"speed": 3})["speed"] == 3
    assert stored_values({"method": "sora", "drain": 1}) == {"method": "sora", "drain": 1}
    with pytest.raises(ConfigError, match=r"unknown key sampler\.speed"):
        read_config(EARLIER | {"speed": 3}, "run.json")
