from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from miga.backbones.registry import load_spec
from miga.errors import InputError, OutputError
from miga.profiles import resolve_config
from pipeline.config import RunConfig, override
from pipeline.records.run_folder import (
    RUN_FILE,
    PromptsFingerprint,
    RunRecord,
    check_run,
    differences,
    fingerprint,
    open_run,
    read_run,
    sidecar_path,
    video_path,
)
from pipeline.storage.base import checked_path
from pipeline.storage.local import LocalStorage


def record(config: RunConfig | None = None, **values: object) -> RunRecord:
    made = RunRecord(
        config=(config or RunConfig()).to_dict(),
        model="sprites",
        model_revision="abc",
        profile="paper",
        sampler={"num_steps": 50, "guidance_scale": 5.0},
        prompts=PromptsFingerprint(path="p.txt", bytes=3, sha256="00"),
        version="0.1.0",
        created_at="2024-02-29T12:00:00+00:00",
    )
    return replace(made, **values)  # type: ignore[arg-type]


def test_first_run_writes_the_record_and_the_second_resumes(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    assert check_run(storage, record()) is None
    assert not (tmp_path / "out").exists(), "checking writes nothing"
    assert open_run(storage, record()) == (record(), False)
    later = record(created_at="2025-01-01T00:00:00+00:00", version="0.2.0")
    assert open_run(storage, later) == (record(), True)
    assert read_run(storage) == record()
    assert storage.children() == [RUN_FILE]


def test_what_is_noted_of_weights_is_read_back_and_keeps_no_run_from_going_on() -> None:
    noted = record(weights=("transformer: 3 of 9 tensors are in F8_E4M3",))
    assert RunRecord.from_json(noted.to_json()) == noted
    assert "weights" not in json.loads(record().to_json()), "earlier versions read it"
    assert differences(record(), noted) == [], "which weights they are, the revision says"


def test_settings_that_change_no_video_may_change(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    open_run(storage, record())
    free = {"workers": {"num_actors": 4}, "logs": {"tracker": "wandb"}}
    config = override(RunConfig(), limit=9, run={"max_attempts": 9, "max_failed_share": 1.0}, **free)
    moved = PromptsFingerprint(path="/elsewhere/p.txt", bytes=3, sha256="00")
    assert open_run(storage, record(config, prompts=moved))[1]


def test_a_run_made_before_a_setting_existed_is_resumed_with_its_default(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    earlier = json.loads(record().to_json())
    del earlier["config"]["video"]["preset"], earlier["config"]["run"]["lease_ttl_s"], earlier["config"]["attention"]
    storage.write_bytes(RUN_FILE, json.dumps(earlier).encode())
    assert open_run(storage, record())[1]
    with pytest.raises(OutputError) as caught:
        open_run(storage, record(override(RunConfig(), video={"preset": "slow"})))
    assert 'config.video.preset: "veryfast" (by default) there, "slow" now' in caught.value.message


def test_a_setting_that_this_version_does_not_know_is_a_difference(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    earlier = json.loads(record().to_json())
    earlier["config"]["video"]["deblock"] = True
    storage.write_bytes(RUN_FILE, json.dumps(earlier).encode())
    with pytest.raises(OutputError, match=r"config\.video\.deblock: true there, nothing now"):
        open_run(storage, record())


def test_what_a_killed_probe_left_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".probe-0123").write_text("")
    assert not open_run(LocalStorage(tmp_path), record())[1]


def test_credentials_in_the_prompts_address_are_refused() -> None:
    with pytest.raises(InputError, match="user or a password") as caught:
        fingerprint("s3://key:hidden@bucket/p.jsonl")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": {"num_steps": 49, "guidance_scale": 5.0}}, "sampler.num_steps: 50 there, 49 now"),
        ({"sampler": {"num_steps": 50}}, "sampler.guidance_scale: 5.0 there, nothing now"),
        ({"profile": "fifo"}, 'profile: "paper" there, "fifo" now'),
        ({"model_revision": "abd"}, "model_revision"),
        (
            {"prompts": PromptsFingerprint(path="p.txt", bytes=4, sha256="01")},
            "the prompt file p.txt: 3 bytes, SHA-256 00… there",
        ),
        ({"config": override(RunConfig(), seed=1)}, "config.seed: 0 there, 1 now"),
        ({"config": override(RunConfig(), video={"crf": 1})}, "config.video.crf: 17 there, 1 now"),
        ({"config": override(RunConfig(), run={"prompts_per_shard": 1})}, "config.run.prompts_per_shard"),
    ],
)
def test_another_config_is_refused_with_every_difference(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    storage = LocalStorage(tmp_path)
    open_run(storage, record())
    with pytest.raises(OutputError) as caught:
        open_run(storage, record(**values))
    assert message in caught.value.message
    assert caught.value.hint
    assert read_run(storage) == record()


def test_out_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"not empty and holds no run \(thesis.tex\)"):
        open_run(LocalStorage(tmp_path), record())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_desktop_litter_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    assert not open_run(LocalStorage(tmp_path), record())[1]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1}', "\udcff"])
def test_broken_record(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OutputError, match="cannot be used"):
        open_run(LocalStorage(tmp_path), record())


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no run"):
        read_run(LocalStorage(tmp_path))


def test_two_that_start_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    real = storage.probe
    monkeypatch.setattr(storage, "probe", lambda **_: (real(), open_run(LocalStorage(tmp_path), record())))
    assert open_run(storage, record(version="9"))[0].version == "0.1.0"


def test_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"abc")
    made = fingerprint(str(path))
    assert (made.bytes, made.sha256[:8]) == (3, "ba7816bf")
    with pytest.raises(InputError):
        fingerprint(str(tmp_path / "none"))


def test_names_are_apart_and_storable() -> None:
    names = [
        sidecar_path("ok", 0, 17, "ab" * 32),
        sidecar_path("failed", 0, 17, "ab" * 32),
        sidecar_path("ok", 0, 18, "ab" * 32),
        video_path(0, 17, "ab" * 32, 1, 1),
        video_path(0, 17, "ab" * 32, 1, 2),
        video_path(0, 17, "ab" * 32, 2, 1),
        video_path(0, 18, "ab" * 32, 1, 1),
        sidecar_path("ok", 123456, 1234567890, "ab" * 32),
    ]
    assert len(set(names)) == len(names)
    assert [checked_path(name) for name in names] == names
    assert names[0] == "done/00000/00000017-abababababababab.json"


def test_config_hash_is_of_the_sampler_alone() -> None:
    assert record().config_hash == record(version="2").config_hash != record(sampler={}).config_hash
    assert differences(record(), record()) == []


def test_an_earlier_version_noted_the_settings_of_all_methods() -> None:
    """Names of videos and configs stay what they are there: what a run is called is what its run.json says."""
    sampler = resolve_config("fifo", load_spec("simulated:wan")).noted()
    of_others = {"zigzag_width": 1, "self_reflection": False, "num_beams": 0, "released_branch": ""}
    earlier, now = record(sampler=sampler | of_others), record(sampler=sampler)
    assert differences(earlier, now) == []
    assert earlier.config_hash != now.config_hash
    stride = {"stride": sampler["stride"] - 1}
    assert [key for key, _, _ in differences(record(sampler=sampler | of_others | stride), now)] == ["sampler.stride"]
