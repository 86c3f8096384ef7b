"""A user's picture, from whatever it is given as to the pixels of a frame; what cannot be one is refused by name.

- Turned as its EXIF says; colours brought to sRGB where it carries a profile; CMYK, grey, palettes and 16 bits made
  8-bit RGB. What is transparent lies on white.
- Scaled until it covers the frame, both sides alike, and cut to the frame around its middle.
- Refused: files that are no picture, or broken, or cut off; moving ones; numbers without a known range (32-bit and
  floating-point files); what is too large to be meant.

Legend: C = 3 (red, green, blue), H, W pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from miga.errors import BadRowError

if TYPE_CHECKING:
    import torch

MAX_BYTES: Final = 256 << 20
MAX_PIXELS: Final = 200_000_000
_WIDE: Final = ("I;16", "I;16B", "I;16L", "I;16N")
_NO_RANGE: Final = ("I", "F")
_STILL_OF_MANY: Final = ("MPO",)
"""Formats of phones and cameras that hold further pictures beside the one that is meant."""


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: what the user called it, for messages.
        rgb: of PIL, mode RGB.
        sha256: of the file's bytes, or of the pixels where there is no file.
    """

    name: str
    rgb: Image.Image
    sha256: str

    def fitted(self, height: int, width: int) -> torch.Tensor:
        """The picture as a frame `[C, H, W]`, float32, -1 ... 1: covered, and cut around the middle."""
        import torch  # whoever only reads prompt files needs none

        frame = ImageOps.fit(self.rgb, (width, height), method=Image.Resampling.BICUBIC, centering=(0.5, 0.5))
        pixels = torch.from_numpy(np.array(frame, dtype=np.float32))
        return pixels.permute(2, 0, 1) / 127.5 - 1.0


def read_picture(given: Any, name: str = "image") -> Picture:
    """A picture from a path, the bytes of a file, a picture of PIL, or an array.

    Args:
        given: an array is uint8, or floating point of 0 ... 1, `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`.
        name: what it is called in messages, but for a path, which is called by itself.

    Raises:
        BadRowError: if it is none that can be used, saying why.
    """
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        return picture_of_bytes(_bytes_of(path), str(path))
    if isinstance(given, bytes | bytearray | memoryview):
        return picture_of_bytes(bytes(given), name)
    if isinstance(given, Image.Image):
        rgb = _as_rgb(given, name)
        return Picture(name, rgb, hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest())
    if isinstance(given, np.ndarray):
        return read_picture(Image.fromarray(_array(given, name)), name)
    raise BadRowError(
        f"{name} is a {type(given).__name__}, no picture", "give a path, a picture of PIL, or an array [H, W, 3]"
    )


def picture_of_bytes(data: bytes, name: str) -> Picture:
    """A picture from a file's bytes.

    Raises:
        BadRowError: see `read_picture`.
    """
    if len(data) > MAX_BYTES:
        raise BadRowError(f"{name} has {len(data):,} bytes", f"give a picture of at most {MAX_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are looked at here, and odd metadata
            with Image.open(io.BytesIO(data)) as opened:
                _check_kind(opened, name)
                rgb = _as_rgb(opened, name)
    except BadRowError:
        raise
    except UnidentifiedImageError as error:
        raise BadRowError(f"{name} is no picture in a format that can be read", "give a PNG, JPEG or WebP") from error
    except Exception as error:  # PIL raises of everything for broken files: OSError, SyntaxError, struct.error, ...
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadRowError(f"{name} is broken: {what}", "save or download it again") from error
    return Picture(name, rgb, hashlib.sha256(data).hexdigest())


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise BadRowError(f"{str(path)!r} is a folder, no picture", "name a file")
        if path.stat().st_size > MAX_BYTES:
            raise BadRowError(f"{str(path)!r} has {path.stat().st_size:,} bytes", f"at most {MAX_BYTES:,} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadRowError(f"there is no picture {str(path)!r}", "see to the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadRowError(f"picture {str(path)!r} cannot be read: {reason}", "see to its permissions") from error


def _check_kind(opened: Image.Image, name: str) -> None:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise BadRowError(f"{name} has {width}x{height} pixels", f"give a picture of at most {MAX_PIXELS:,}")
    num_frames = getattr(opened, "n_frames", 1)
    if num_frames > 1 and opened.format not in _STILL_OF_MANY:
        raise BadRowError(f"{name} is a moving picture of {num_frames} frames", "save the one that is meant")


def _as_rgb(picture: Image.Image, name: str) -> Image.Image:
    """8-bit RGB, upright, on white."""
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _NO_RANGE:
        picture = _of_16_bits(picture, name)
    elif picture.mode in _WIDE:
        picture = Image.fromarray((np.asarray(picture).astype(np.float32) / 257.0).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, rgba).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        picture = _in_srgb(picture, profile)
    return picture.convert("RGB")


def _of_16_bits(picture: Image.Image, name: str) -> Image.Image:
    """Grey values that PIL holds in 32 bits; 16 are what PNG and TIFF files have."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise BadRowError(f"{name} holds numbers of no known range (mode {picture.mode})", "save it in 8 or 16 bits")
    return Image.fromarray((values / 257.0).round().astype(np.uint8))


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """In the colours of screens; a profile that cannot be read, or is of other channels, is passed over."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        changed = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture
    return picture if changed is None else changed


def _array(given: np.ndarray, name: str) -> np.ndarray:
    is_float = given.dtype.kind == "f"
    if given.ndim not in (2, 3) or 0 in given.shape or (given.ndim == 3 and given.shape[2] not in (1, 3, 4)):
        raise BadRowError(f"{name} is an array of shape {list(given.shape)}", "give [height, width, 3]")
    if is_float and not (np.isfinite(given).all() and given.min() >= 0.0 and given.max() <= 1.0):
        raise BadRowError(f"{name} holds numbers outside of 0 ... 1", "give floats of 0 ... 1, or uint8 of 0 ... 255")
    if not is_float and given.dtype != np.uint8:
        raise BadRowError(f"{name} is an array of {given.dtype}", "give floats of 0 ... 1, or uint8 of 0 ... 255")
    levels = (given * 255.0).round().astype(np.uint8) if is_float else given
    return np.ascontiguousarray(levels[..., 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels)
