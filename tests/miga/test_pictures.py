"""What users give as a picture: turned, flattened and fitted as stated, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from miga.errors import BadRowError
from miga.pictures import picture_of_bytes, read_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def data_of(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def halves(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE) -> Image.Image:
    """8 wide, 4 high."""
    picture = Image.new("RGB", (8, 4), left)
    picture.paste(right, (4, 0, 8, 4))
    return picture


def test_turned_as_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    rgb = picture_of_bytes(data_of(halves(), exif=exif.tobytes()), "photo").rgb
    assert rgb.size == (4, 8)
    assert [rgb.getpixel((1, 0)), rgb.getpixel((1, 7))] == [RED, BLUE]


def test_transparent_lies_on_white() -> None:
    picture = halves().convert("RGBA")
    picture.putalpha(Image.new("L", (8, 4), 0))
    assert picture_of_bytes(data_of(picture), "alpha").rgb.getpixel((0, 0)) == WHITE
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putdata([0, 1])
    rgb = picture_of_bytes(data_of(palette, transparency=0), "palette").rgb
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]


def test_sixteen_bits_grey_and_cmyk() -> None:
    wide = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    rgb = picture_of_bytes(data_of(wide), "wide").rgb
    assert [rgb.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]
    assert picture_of_bytes(data_of(Image.new("L", (3, 3), 9)), "grey").rgb.getpixel((1, 1)) == (9, 9, 9)
    cmyk = picture_of_bytes(data_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "print").rgb
    red, green, blue = cmyk.getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 > 60 > max(green, blue)


def test_fitted_covers_the_frame_around_the_middle() -> None:
    wide = Image.new("RGB", (12, 4), GREEN)
    wide.paste(RED, (0, 0, 4, 4))
    wide.paste(BLUE, (8, 0, 12, 4))
    frame = read_picture(wide).fitted(4, 4)
    assert frame.shape == (3, 4, 4)
    assert torch.equal(frame[1], torch.ones(4, 4))
    assert torch.equal(frame[0], -torch.ones(4, 4))
    assert read_picture(wide).fitted(32, 48).shape == (3, 32, 48)


def test_arrays_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data_of(halves()))
    of_file = read_picture(tmp_path / "a.png")
    array = np.asarray(halves())
    for given in (array, array / 255.0, halves()):
        assert np.array_equal(np.asarray(read_picture(given).rgb), array)
    assert len({of_file.sha256, read_picture(array).sha256, read_picture(array[:, ::-1]).sha256}) == 3
    assert read_picture(array[..., 0]).rgb.getpixel((0, 0)) == (255, 255, 255)


def moving(format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    return data_of(frames[0], format, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no picture"),
        (b"<html>404</html>", "no picture"),
        (data_of(Image.effect_noise((64, 64), 80.0))[:2000], "is broken"),
        (moving("GIF"), "a moving picture of 2 frames"),
        (moving("PNG"), "a moving picture of 2 frames"),
        (data_of(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "no known range"),
    ],
    ids=["empty", "html", "cut off", "gif", "apng", "float"],
)
def test_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(BadRowError, match=f"cat.png.*{said}"):
        picture_of_bytes(data, "cat.png")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "is a int, no picture"),
        (np.zeros((2, 2, 5), np.uint8), "shape"),
        (np.full((2, 2), 2.0), "outside of 0 ... 1"),
        (np.zeros((2, 2), np.int32), "array of int32"),
        ("/nowhere/cat.png", "there is no picture"),
    ],
)
def test_given_wrongly(given: Any, said: str) -> None:
    with pytest.raises(BadRowError, match=said):
        read_picture(given)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(BadRowError, match="is a folder"):
        read_picture(tmp_path)
