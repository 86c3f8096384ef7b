"""Profiles and settings by name: what a user says, or a file notes, becomes a method's settings.

A profile is resolved in three layers, later ones winning: the settings published for the family of the model, the
model's own (`BackboneSpec.sampler`), and what the user overrides.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from miga.config import SamplerConfig, check_positions
from miga.errors import ConfigError
from miga.methods import methods
from miga.methods.base import Method, Profile
from miga.outside_data import shown

if TYPE_CHECKING:
    from miga.backbones.base import BackboneSpec


def profiles() -> dict[str, Profile]:
    """Every profile by its name, those that leave out parts of a method last; the method is among their settings."""
    found = {
        name: replace(profile, settings={"method": method.name, **profile.settings})
        for method in methods().values()
        for name, profile in method.profiles.items()
    }
    return dict(sorted(found.items(), key=lambda item: bool(item[1].ablates)))


def field_names(method: str | None = None) -> tuple[str, ...]:
    """Every setting that a method reads; by default all that any reads, those that all share first."""
    return ("profile", *(_types() if method is None else _types_of(methods()[method])))


def setting_types() -> dict[str, Any]:
    """The type of every setting that a method reads, by name, those that all share first."""
    return _types()


def published(family: str) -> dict[str, Any]:
    """What is published for a family of models, of whatever method; empty for an unknown family."""
    found: dict[str, Any] = {}
    for method in methods().values():
        found = {**method.published.get(family, {}), **found}
    return found


def resolve_config(profile: str, spec: BackboneSpec, overrides: Mapping[str, Any] | None = None) -> SamplerConfig:
    """The settings of a profile for a model.

    Args:
        profile: a name of `profiles()`.
        spec: the model; its `sampler` settings win over those published for its family.
        overrides: settings of the profile's method that win over all else.

    Raises:
        ConfigError: for an unknown profile or field, a wrong type or a value out of range.
    """
    known = profiles()
    check_profile(profile)
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(f"sampler = {shown(overrides)} has the wrong type", "it takes keys and values")
    overrides = dict(overrides or {})
    check_overrides(overrides)
    fixed = {**known[profile].settings, **known[profile].by_family.get(spec.family, {})}
    method = methods()[overrides.get("method", fixed["method"])]
    _check_used(method, profile, overrides)
    values = _layers(method, spec, {**spec.sampler, **fixed}, overrides)
    if method.name == fixed["method"]:  # what a profile derives, it derives from its own method's settings
        values = {**values, **known[profile].derive(values), **overrides}
    values = {**method.settings.implied(values), **values}
    if missing := [name for name in _types_of(method) if name not in values]:
        raise ConfigError(f"sampler.{missing[0]} is not said", f"method {method.name!r} needs it; say it in [sampler]")
    try:
        config = method.settings(profile=profile, **_of_method(method, values))
    except ConfigError as error:
        levels = levels_at(profile, spec, values["num_steps"], overrides)
        if not levels:
            raise
        said = ", ".join(f"{name} = {value}" for name, value in levels.items())
        raise ConfigError(error.message, f"{error.hint}; with num_steps = {values['num_steps']} goes {said}") from None
    _check_solver_fits(config, spec.noise_schedule)
    check_positions(config, spec.takes_positions, spec.name)
    config.check_model(spec)
    return config


def levels_at(profile: str, spec: BackboneSpec, num_steps: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are counted in steps, as they are to be said with another number of steps than the published one.

    Args:
        profile: a name of `profiles()`.
        spec: the model.
        num_steps: the other number.
        said: settings that are said anyway. Where `handoff_level` is among them, the others are left to the user, too.

    Returns:
        Those that change; none of a model that nothing is published for, whose settings are in proportion already.
    """
    chosen = profiles()[profile]
    fixed = {**chosen.settings, **chosen.by_family.get(spec.family, {})}
    method = methods()[said.get("method", fixed["method"])]
    published = {**method.published.get(spec.family, {}), **spec.sampler}
    if spec.family not in method.published or "handoff_level" in said or num_steps < 1:
        return {}
    changed = method.at_steps(published, num_steps)
    left_out = {"num_steps", *fixed, *said}
    return {name: value for name, value in changed.items() if value != published[name] and name not in left_out}


def why_no_length(config: SamplerConfig, spec: BackboneSpec, num_frames: int) -> str | None:
    """Why no video of so many frames can be made, with the nearest lengths that can; None if it can."""
    try:
        near = config.lengths_near(spec.num_latents(num_frames))
    except ValueError as error:
        return str(error)
    if not near:
        return None
    lengths = " or ".join(str(spec.num_frames(length)) for length in near)
    return (
        f"num_frames {num_frames} cannot be made: {spec.num_latents(num_frames)} latents are no whole number of the "
        f"blocks of profile {config.profile!r}; the nearest is {lengths}"
    )


def why_no_starts(
    config: SamplerConfig, spec: BackboneSpec, num_frames: int | None, first_frames: Sequence[int]
) -> str | None:
    """Why prompts cannot begin at these frames of a video, saying which and what can be; None if they can.

    Args:
        config: the settings.
        spec: the model.
        num_frames: of the video, which can be made; None: it has no end.
        first_frames: of each prompt, counted from 0, rising.
    """
    before, num_latents = 0, None if num_frames is None else spec.num_latents(num_frames)
    for number, frame in enumerate(first_frames[1:], 2):
        first = config.first_under(spec.latent_at(frame))
        if num_frames is not None and num_latents is not None and (frame >= num_frames or first >= num_latents):
            backwards = range(num_frames - 1, -1, -1)
            last = next(each for each in backwards if config.first_under(spec.latent_at(each)) < num_latents)
            return (
                f"prompt {number} begins at frame {frame}, too late in a video of {num_frames} frames: nothing would "
                f"be made under it; the latest frame is {last}"
            )
        if first <= before:
            return (
                f"prompts {number - 1} and {number} begin at frames {first_frames[number - 2]} and {frame}, which "
                f"profile {config.profile!r} makes together: one of them would never be shown; put them further apart"
            )
        before = first
    return None


def default_num_frames(config: SamplerConfig, spec: BackboneSpec) -> int:
    """Frames of a video where no length is asked for: the model's own, or the nearest that the method can make."""
    near = config.lengths_near(spec.num_latents(spec.default_num_frames))
    return spec.num_frames(near[0]) if near else spec.default_num_frames


def warn_of_concerns(
    config: SamplerConfig, spec: BackboneSpec, num_latents: int | None, trained: BackboneSpec | None = None
) -> None:
    """Says by `warnings` what a user should know before anything is made.

    Args:
        config: the settings.
        spec: the model at the size that is asked for.
        num_latents: of the video (of several, of the longest); None if it has no end.
        trained: the model at its own size.
    """
    if concern := config.concern(num_latents):
        warnings.warn(concern, stacklevel=2)
    if trained is not None and config.num_cached and spec.latent_shape != trained.latent_shape:
        warnings.warn(
            f"profile {config.profile!r} at {spec.height}x{spec.width}: the weights saw {trained.height}x"
            f"{trained.width} in training; causal weights are distilled at one size, and others may come out worse",
            stacklevel=2,
        )


def check_profile(profile: str) -> None:
    """Returns if there is a profile of that name.

    Raises:
        ConfigError: if not, naming the nearest.
    """
    known = profiles()
    if not isinstance(profile, str) or profile not in known:
        raise ConfigError(f"unknown profile {profile!r}", _suggest(profile, known, "profiles"))


def _check_used(method: Method, profile: str, overrides: Mapping[str, Any]) -> None:
    types = _types_of(method)
    for name, value in overrides.items():
        if name not in types:
            raise ConfigError(
                f"sampler.{name} does nothing in profile {profile!r}",
                f"leave it out; method {method.name!r} reads: {', '.join(types)}",
            )
        _check_type(name, value, types[name])


def _layers(
    method: Method, spec: BackboneSpec, fixed: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of all layers, and the shared ones that follow from them."""
    said = {"window": spec.window, **spec.sampler, **overrides}
    if said["window"] > spec.window:
        raise ConfigError(
            f"sampler.window = {said['window']} is more than {spec.name!r} was trained on",
            f"it must be at most {spec.window} latents",
        )
    family = method.published.get(spec.family) or method.in_proportion(said["window"], said.get("num_steps", 50))
    defaults = {
        field.name: field.default
        for field in fields(method.settings)
        if field.default is not MISSING and field.name not in method.settings.follows
    }
    shared = {"window": spec.window, "guidance_low_level": 1, "timesteps": (), "windows_per_batch": 1}
    of_picture = {"image_condition": "anchor"} if spec.image_input == "channels" else {}
    values = {**shared, **defaults, **of_picture, **family, **fixed, **overrides}
    if values["timesteps"] and "num_steps" not in overrides:
        values["num_steps"] = len(values["timesteps"])
    if values["solver"] != "ddim" and "eta" not in overrides:
        values["eta"] = 0.0
    values.setdefault("guidance_high_level", values["num_steps"])
    return values


def _check_solver_fits(config: SamplerConfig, noise_schedule: str) -> None:
    """What a solver asks of the noise schedule, as far as that is known before the model is loaded."""
    if config.timesteps and config.solver not in ("renoise", "euler"):
        raise ConfigError(
            f"sampler.solver = {config.solver!r} cannot step through sampler.timesteps",
            "step-distilled models take solver 'renoise' (or 'euler')",
        )
    if noise_schedule == "ddim" and config.solver == "unipc":
        raise ConfigError(
            "sampler.solver = 'unipc' cannot step through this model's noise schedule",
            "its last two levels are one and the same; take 'ddim' (with eta = 0: deterministic) or 'euler'",
        )
    if noise_schedule == "ddim" and config.timesteps:
        raise ConfigError("sampler.timesteps are those of flow-matching models", "leave them out for this model")
    if noise_schedule == "ddim" and config.solver == "renoise":
        raise ConfigError(
            "sampler.solver = 'renoise' would leave noise on this model's finished latents: its noise schedule ends at "
            "0.029, above 0, and the solver noises its prediction to that",
            "take 'ddim' (with eta = 1: as much fresh noise in between) or 'euler'",
        )


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuses names and types that no method's settings have (ranges are checked once all is resolved).

    Raises:
        ConfigError: naming the field and what it takes.
    """
    types = _types()
    for name, value in overrides.items():
        if name not in types:
            raise ConfigError(f"unknown key sampler.{shown(name)[1:-1]}", _suggest(name, types, "keys"))
        _check_type(name, value, types[name])


def _check_type(name: str, value: Any, kind: Any) -> None:
    if problem := _type_problem(kind, value):
        raise ConfigError(f"sampler.{name} = {_shown(value)} has the wrong type", problem)
    known = tuple(methods()) if name == "method" else get_args(kind) if get_origin(kind) is Literal else ()
    if known and value not in known:
        raise ConfigError(f"sampler.{name} = {_shown(value)} is unknown", f"it is one of {', '.join(map(repr, known))}")


def read_config(values: Any, origin: str) -> SamplerConfig:
    """What `SamplerConfig.noted` gave, in this version or an earlier one, read back from wherever it was noted.

    Args:
        values: plain values, as JSON has them.
        origin: the file they are from, for messages.

    Raises:
        ConfigError: if they are no such record, or one that cannot be.
    """
    try:
        return _stored_config(values)
    except ConfigError as error:
        hint = error.hint or "restore the file: it is not as this version wrote it"
        raise ConfigError(f"{origin}: {error.message}", hint) from error


def _stored_config(values: Any) -> SamplerConfig:
    if not isinstance(values, Mapping):
        raise ConfigError("sampler holds no settings", "")
    for name in ("profile", "method"):
        if name not in values:
            raise ConfigError(f"sampler.{name} is missing", "")
    if not isinstance(values["profile"], str):
        raise ConfigError(f"sampler.profile = {shown(values['profile'])} has the wrong type", "")
    check_overrides({name: value for name, value in values.items() if name != "profile"})
    values = stored_values(values)
    method = methods()[values["method"]]
    known = values.keys() | method.settings.added_later
    if missing := [name for name in field_names(method.name) if name not in known]:
        raise ConfigError(f"sampler.{missing[0]} is missing", "")
    return method.settings(**values)


def stored_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as this version notes them, of those that it or an earlier version noted.

    Earlier versions noted the settings of all methods beside each other: what the method does not read is left out.
    What no method knows stays, for whoever reads it to refuse. What was added later is left out where it changes
    nothing (`SamplerConfig.noted`).
    """
    named = [name for name, each in methods().items() if each.had_other_name(values)]
    values = {**values, "method": named[0]} if named else dict(values)
    method = values.get("method")
    if not isinstance(method, str) or method not in methods():
        return values
    unread = set(field_names()) - set(field_names(method))
    kind = methods()[method].settings
    unchanged = {each.name: each.default for each in fields(kind) if each.name in kind.added_later}
    return {
        name: value
        for name, value in values.items()
        if name not in unread and (name not in unchanged or value != unchanged[name])
    }


def _types_of(method: Method) -> dict[str, Any]:
    """What the settings of a method take, by name."""
    hints = get_type_hints(method.settings)
    return {field.name: hints[field.name] for field in fields(method.settings) if field.name != "profile"}


def _types() -> dict[str, Any]:
    """The same of all methods."""
    types: dict[str, Any] = {}
    for method in methods().values():
        types |= {name: kind for name, kind in _types_of(method).items() if name not in types}
    return types


def _of_method(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    types = _types_of(method)
    return {name: value for name, value in values.items() if name in types}


def _type_problem(kind: Any, value: Any) -> str:
    """What a field of that type takes, if the value is none; else nothing."""
    if get_origin(kind) is tuple:
        is_list = isinstance(value, list | tuple) and all(type(item) is int for item in value)
        return "" if is_list else "it takes a list of whole numbers"
    allowed = {float: (float, int), int: (int,), bool: (bool,)}.get(kind, (str,))
    if isinstance(value, allowed) and (not isinstance(value, bool) or kind is bool):
        if kind is float and not isinstance(value, str) and abs(value) > sys.float_info.max:
            return "it takes a number that a float holds"
        if kind is int and isinstance(value, int) and value.bit_length() > 63:
            return "it takes a whole number of at most 63 bits"
        return ""
    return f"it takes a value of type {kind.__name__ if kind in (float, int, bool) else 'str'}"


def _shown(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _suggest(name: object, known: Mapping[str, Any], what: str) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"{what}: {', '.join(known)}"
