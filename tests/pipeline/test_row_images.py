"""Pictures that rows name: found, judged, noted by their digests, and the same when they are read again."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miga.errors import BadRowError
from miga.pictures import picture_of_bytes
from pipeline.prompts.images import RowImages, folder_of, frame_of, picture_at
from pipeline.prompts.read import read_prompts
from pipeline.rows import BadRow, PromptRow, video_key


def png(colour: tuple[int, int, int] = (250, 10, 90), size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def rows_of(folder: Path, *rows: dict[str, object], images: RowImages | None = None) -> list[PromptRow | BadRow]:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": "a ball", **row}) + "\n" for row in rows))
    images = images or RowImages(str(file), {})
    return list(read_prompts(str(file), seed=0, num_frames=5, images=images))


def test_beside_the_prompt_file_and_by_address(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    there = tmp_path / "pictures" / "a.png"
    rows = rows_of(tmp_path, {"image": "pictures/a.png"}, {"image": str(there)}, {"image": f"file://{there}"}, {})
    digest = hashlib.sha256(png()).hexdigest()
    assert [row.image_sha256 for row in rows if isinstance(row, PromptRow)] == [digest] * 3 + [None]
    assert all(isinstance(row, PromptRow) and not row.metadata for row in rows)
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe("/images-test/b.png", png((1, 2, 3)))
    assert picture_at("b.png", folder_of("memory://images-test/prompts.jsonl")).rgb.getpixel((0, 0)) == (1, 2, 3)
    memory.rm("/images-test", recursive=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.png", "nowhere.png.*does not exist"),
        ("prompts.jsonl", "prompts.jsonl is no picture"),
        (" ", "is blank"),
        (3, "image is the number 3, not text"),
        (".", "is a folder"),
    ],
)
def test_a_bad_picture_is_its_rows_fault_alone(tmp_path: Path, name: object, said: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    bad, good = rows_of(tmp_path, {"image": name}, {"image": "a.png"})
    assert isinstance(good, PromptRow)
    assert isinstance(bad, BadRow)
    assert __import__("re").search(said, bad.error)


def test_what_model_and_profile_take(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    images = RowImages(str(tmp_path / "prompts.jsonl"), {"last_image": "it ends as it will"}, ("image",))
    rows = rows_of(tmp_path, {}, {"image": "a.png"}, {"image": "a.png", "last_image": "a.png"}, images=images)
    assert [type(row) for row in rows] == [BadRow, PromptRow, BadRow]
    (alone,) = rows_of(tmp_path, {"last_image": "a.png"})
    assert isinstance(alone, BadRow)
    assert "'last_image' and no 'image'" in alone.error
    assert "there is no 'image'" in rows[0].error  # type: ignore[union-attr]
    assert "it ends as it will" in rows[2].error  # type: ignore[union-attr]


def test_a_picture_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    picture = picture_at("a.png", str(tmp_path))
    sent = picture_of_bytes(frame_of(picture, picture.sha256, 16, 24), "sent")
    assert torch.equal(sent.fitted(16, 24), picture.fitted(16, 24))
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(BadRowError, match="was changed while the run was made"):
        frame_of(picture_at("a.png", str(tmp_path)), picture.sha256, 16, 24)


def test_pictures_are_part_of_what_names_a_video() -> None:
    def key(*digests: str | None) -> str:
        return video_key(("a",), None, 1, 5, {}, "r", *digests)

    assert key() == key(None, None)
    assert len({key(), key("a"), key("b"), key(None, "a"), key("a", "a")}) == 5
