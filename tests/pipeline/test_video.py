from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from miga import encoding
from miga.encoding import mp4_pieces
from miga.errors import ConfigError, OutputError, RowError, WorkerError
from miga.video_config import VideoConfig
from pipeline import video
from pipeline.config import settings_of_codec
from pipeline.video import (
    STRIP_TILES,
    Frames,
    VideoWriter,
    check_codec,
    contact_strip,
    count_frames,
    poster_frame,
    poster_jpeg,
    read_form,
    read_frames,
    write_video,
)


def colours(num_frames: int, height: int = 64, width: int = 96) -> Frames:
    """Flat frames, each of another colour."""
    colour_FC = np.random.default_rng(0).integers(0, 256, (num_frames, 3), dtype=np.uint8)
    return np.broadcast_to(colour_FC[:, None, None], (num_frames, height, width, 3)).copy()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_frames_come_back_in_number_order_size_and_colour(tmp_path: Path) -> None:
    frames_FHWC = colours(21)
    chunks = iter([frames_FHWC[:1], frames_FHWC[1:1], frames_FHWC[1:9], frames_FHWC[9:]])
    made = write_video(chunks, tmp_path / "deep" / "a.mp4", fps=8, num_frames=21)
    assert (made.num_frames, made.height, made.width, made.fps, made.duration_s) == (21, 64, 96, 8, 21 / 8)
    assert made.bytes == made.path.stat().st_size > 0
    assert len(made.sha256) == 64
    again_FHWC = np.stack(list(read_frames(made.path)))
    assert again_FHWC.shape == frames_FHWC.shape
    assert np.abs(again_FHWC.astype(int) - frames_FHWC).max() <= 6
    assert np.array_equal(poster_frame(made.path), again_FHWC[0])
    assert poster_jpeg(made.path, width=48).startswith(b"\xff\xd8")
    assert left_in(tmp_path) == ["a.mp4", "deep"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 7, 33])
def test_a_contact_strip_shows_first_to_last_frame(tmp_path: Path, num_frames: int) -> None:
    import io

    from PIL import Image

    shades = [40 + 200 * index // max(num_frames - 1, 1) for index in range(num_frames)]
    frames_FHWC = np.stack([np.full((64, 96, 3), shade, np.uint8) for shade in shades])
    made = write_video([frames_FHWC], tmp_path / "v.mp4", fps=8)
    image = Image.open(io.BytesIO(contact_strip(made.path, num_frames)))
    assert image.size == (STRIP_TILES * 96, 64)
    seen = [image.convert("L").getpixel((96 * tile + 48, 32)) for tile in range(STRIP_TILES)]
    wanted = [shades[round(tile * (num_frames - 1) / (STRIP_TILES - 1))] for tile in range(STRIP_TILES)]
    assert seen == pytest.approx(wanted, abs=4)
    assert Image.open(io.BytesIO(contact_strip(made.path, num_frames, height=32))).size == (STRIP_TILES * 48, 32)


def test_a_file_without_frames_has_no_contact_strip(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(WorkerError, match="holds no frames"):
        contact_strip(tmp_path / "v.mp4", 5)


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    noise_FHWC = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    first = write_video([noise_FHWC], tmp_path / "a.mp4", fps=8)
    second = write_video((frame[None] for frame in noise_FHWC), tmp_path / "b.mp4", fps=8)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == second.sha256


def test_index_stands_at_the_front(tmp_path: Path) -> None:
    data = write_video([colours(5)], tmp_path / "a.mp4", fps=8).path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("error", [RuntimeError("decoder"), KeyboardInterrupt(), GeneratorExit()])
def test_an_error_in_the_midst_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    def chunks() -> Iterator[Frames]:
        yield colours(5)
        raise error

    with pytest.raises(type(error)):
        write_video(chunks(), tmp_path / "a.mp4", fps=8)
    assert left_in(tmp_path) == []


def test_a_writer_left_early_leaves_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        writer.write(colours(5))
    assert left_in(tmp_path) == []


def test_an_earlier_file_stays_when_the_next_fails(tmp_path: Path) -> None:
    made = write_video([colours(5)], tmp_path / "a.mp4", fps=8)
    with pytest.raises(RowError):
        write_video([], made.path, fps=8)
    assert count_frames(made.path) == 5


@pytest.mark.parametrize("num_frames", [4, 6])
def test_wrong_number_of_frames(tmp_path: Path, num_frames: int) -> None:
    with pytest.raises(RowError, match=f"5 frames came where {num_frames}"):
        write_video([colours(5)], tmp_path / "a.mp4", fps=8, num_frames=num_frames)
    assert left_in(tmp_path) == []


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="no frames"):
        write_video(iter([]), tmp_path / "a.mp4", fps=8)
    with pytest.raises(RowError, match="no frames"):
        write_video([colours(0)], tmp_path / "a.mp4", fps=8)
    assert left_in(tmp_path) == []


def test_a_file_that_is_too_short_is_not_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "count_frames", lambda path: 3)
    with pytest.raises(WorkerError, match="holds 3 frames, not the 5"):
        write_video([colours(5)], tmp_path / "a.mp4", fps=8)
    assert left_in(tmp_path) == []


def test_a_full_disk_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr(encoding, "count_frames", lambda path: 3)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OutputError, match="no space left"):
        write_video([colours(5)], tmp_path / "a.mp4", fps=8)


def test_frames_must_be_frames(tmp_path: Path) -> None:
    for wrong in (colours(2).astype(np.float32), colours(2)[0], colours(2)[..., :1]):
        with pytest.raises(ValueError, match="must be uint8"):
            write_video([wrong], tmp_path / "a.mp4", fps=8)
    with pytest.raises(ValueError, match="after frames"):
        write_video([colours(2), colours(2, 32, 32)], tmp_path / "a.mp4", fps=8)
    assert left_in(tmp_path) == []


def test_a_playlist_that_is_called_mp4_leads_to_no_other_file(tmp_path: Path) -> None:
    """ffmpeg goes by what a file holds where it may guess, and then reads what that names."""
    secret = write_video([colours(3)], tmp_path / "elsewhere.mp4", fps=8).path
    playlist = tmp_path / "video.mp4"
    for text in (
        f"ffconcat version 1.0\nfile '{secret.name}'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.name}\n#EXT-X-ENDLIST\n",
    ):
        playlist.write_text(text)
        with pytest.raises(WorkerError):
            count_frames(playlist)
        with pytest.raises(WorkerError):
            poster_jpeg(playlist)
        for read in (read_frames, lambda path: [read_form(path)]):
            with pytest.raises(OSError, match="mp4"):
                list(read(playlist))


def test_odd_sizes_are_refused_or_kept(tmp_path: Path) -> None:
    frames_FHWC = colours(3, 65, 63)
    with pytest.raises(ConfigError, match="height 65 and width 63"):
        write_video([frames_FHWC], tmp_path / "a.mp4", fps=8)
    full = VideoConfig(pixel_format="yuv444p")
    made = write_video([frames_FHWC], tmp_path / "a.mp4", fps=8, settings=full)
    assert next(read_frames(made.path)).shape == (65, 63, 3)


def test_truncated_file_does_not_count(tmp_path: Path) -> None:
    made = write_video([colours(20)], tmp_path / "a.mp4", fps=8)
    made.path.write_bytes(made.path.read_bytes()[:-200])
    with pytest.raises(WorkerError, match="does not decode"):
        count_frames(made.path)


@pytest.mark.parametrize("settings", [VideoConfig(), VideoConfig(codec="mpeg4", crf=None, preset=None)])
def test_usable_settings_make_a_file(settings: VideoConfig, tmp_path: Path) -> None:
    check_codec(settings, height=48, width=80)
    made = write_video([colours(3, 48, 80)], tmp_path / "a.mp4", fps=8, settings=settings)
    assert count_frames(made.path) == 3


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codec": "h265"}, "use one of libx264"),
        ({"preset": "zz"}, "invalid preset 'zz'"),
        ({"pixel_format": "abc"}, "Unknown pixel format"),
        ({"pixel_format": "yuvj420p"}, "set pixel_format = 'yuv420p'"),
        ({"pixel_format": "gbrp"}, "changes colours"),
        ({"pixel_format": "gray"}, "cannot write pixel_format 'gray'"),
        ({"codec": "mpeg4", "pixel_format": "yuv444p"}, "cannot write pixel_format 'yuv444p'"),
        ({"codec": "libsvtav1"}, "preset = 'none'"),
        ({"codec": "libvpx"}, "makes no MP4"),
    ],
)
def test_unusable_settings_are_found_out_before_any_frame(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_codec(VideoConfig(**settings))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "[video]" in str(caught.value)


FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "nv12", "gbrp")
FEW = [("libx264", "yuv420p"), ("libx264", "yuv444p"), ("libx264", "yuv420p10le"), ("libx265", "yuv420p"),
       ("libx265", "gbrp"), ("libsvtav1", "yuv420p"), ("mpeg4", "yuv420p")]  # fmt: skip
COLOURS = bytes.fromhex("ff000000ff000000ffffffff808080c80000")
COLOUR_KC = np.frombuffer(COLOURS, np.uint8).reshape(6, 3)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("codec", "pixel_format"), FEW)
def test_every_player_is_told_the_colours_and_they_come_back(tmp_path: Path, codec: str, pixel_format: str) -> None:
    settings = replace(settings_of_codec(codec), pixel_format=pixel_format)
    check_codec(settings)
    check_colours(settings, tmp_path)


@pytest.mark.slow
def test_colours_of_all_codecs_and_pixel_formats_that_are_taken(tmp_path: Path) -> None:
    taken = set()
    for codec, pixel_format in itertools.product(video._working_codecs(), FORMATS):
        settings = replace(settings_of_codec(codec), pixel_format=pixel_format)
        with contextlib.suppress(ConfigError):
            check_codec(settings)
            taken.add(settings)
    for settings in taken:
        check_colours(settings, tmp_path)
    assert len(taken) >= 15


def check_colours(settings: VideoConfig, folder: Path) -> None:
    """ffmpeg's own words on a file, its container's box, and what it decodes with no setting at all."""
    frame_HWC = COLOUR_KC.reshape(2, 3, 3).repeat(32, 0).repeat(32, 1)
    made = write_video([frame_HWC[None].repeat(4, 0)], folder / "a.mp4", fps=8, settings=settings)
    data = made.path.read_bytes()
    again = write_video([frame_HWC[None].repeat(4, 0)], folder / "b.mp4", fps=8, settings=settings)
    assert again.path.read_bytes() == data, settings
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(made.path)]
    shown = subprocess.run(command, capture_output=True, check=False).stderr.decode()
    (line,) = [line for line in shown.splitlines() if "Video:" in line]
    box = data[data.index(b"colrnclx") + 8 :][:7]
    if settings.pixel_format == "gbrp":
        assert "(pc, gbr/bt709/bt709" in line
        assert box == b"\0\1\0\1\0\0\x80"
    else:
        assert "(tv, bt709" in line, "the three alike are said in one word"
        assert "unknown" not in line
        assert box == b"\0\1\0\1\0\1\0", "primaries, transfer, matrix: 1 is BT.709; limited range"
    if settings.codec == "libx265":
        assert "(hvc1 / " in line
    plain = [*command, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(plain, capture_output=True, check=True).stdout
    frames_FHWC = np.frombuffer(raw, np.uint8).reshape(4, 64, 96, 3).astype(int)
    off = np.abs(frames_FHWC[:, 16::32, 16::32].reshape(4, 6, 3) - COLOUR_KC).max()
    assert off <= 3, (settings, off)


def test_messages_offer_only_codecs_that_work() -> None:
    with pytest.raises(ConfigError) as caught:
        check_codec(VideoConfig(codec="h265"))
    for codec in caught.value.hint.removeprefix("use one of ").split(", "):
        check_codec(settings_of_codec(codec))


def test_a_codec_that_other_colours_come_back_from_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    options = encoding.output_options

    def said_to_be_bt601(settings: VideoConfig) -> list[str]:
        said = [option.replace("colorspace=bt709", "colorspace=smpte170m") for option in options(settings)]
        said[said.index("-colorspace") + 1] = "smpte170m"
        return said

    monkeypatch.setattr(encoding, "output_options", said_to_be_bt601)
    monkeypatch.setattr(video, "output_options", said_to_be_bt601)
    video._colour_fault.cache_clear()
    try:
        with pytest.raises(ConfigError, match="changes colours"):
            check_codec(VideoConfig())
    finally:
        video._colour_fault.cache_clear()


def boxes(data: bytes) -> list[str]:
    """Names of a file's boxes, in order, by the sizes that ISO 14496-12 gives them."""
    names, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        names.append(data[place + 4 : place + 8].decode())
        place += size
    assert place == len(data)
    return names


def test_pieces_of_an_mp4_are_a_file_of_the_same_frames(tmp_path: Path) -> None:
    frames_FHWC = colours(40)
    data = b"".join(mp4_pieces(iter([frames_FHWC[:1], frames_FHWC[1:1], frames_FHWC[1:]]), fps=8))
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert count_frames(path) == 40
    assert read_form(path) == (8.0, 64, 96)
    again_FHWC = np.stack(list(read_frames(path)))
    assert np.abs(again_FHWC.astype(int) - frames_FHWC).max() <= 6
    names = boxes(data)
    assert names[:2] == ["ftyp", "moov"]
    assert names.count("moof") >= 5, "a fragment a second, and one at every cut"


def test_pieces_come_while_frames_are_still_to_come() -> None:
    """The writer never holds more than a few seconds of video: fragments leave long before the last frame."""
    asked = 0

    def frames() -> Iterator[Frames]:
        nonlocal asked
        for frame_HWC in colours(4000, 64, 64):
            asked += 1
            yield frame_HWC[None]

    data = b""
    pieces = mp4_pieces(frames(), fps=8)
    while "moof" not in str(data):
        data += next(pieces)
    assert asked < 4000
    pieces.close()
    assert asked < 4000, "closing asks for no more frames"


def test_pieces_of_what_is_no_video() -> None:
    with pytest.raises(RowError, match="no frames"):
        list(mp4_pieces(iter([]), fps=8))
    with pytest.raises(ValueError, match="must be uint8"):
        list(mp4_pieces([colours(2).astype(np.float32)], fps=8))
    with pytest.raises(ValueError, match="after frames"):
        list(mp4_pieces([colours(2), colours(2, 32, 32)], fps=8))
    with pytest.raises(ConfigError, match="even sizes"):
        list(mp4_pieces([colours(2, 31, 32)], fps=8))
    with pytest.raises(WorkerError, match="ffmpeg failed"):
        list(mp4_pieces([colours(2)], fps=8, settings=VideoConfig(codec="h265")))


def test_an_ffmpeg_that_dies_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(start(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    def frames() -> Iterator[Frames]:
        yield colours(3)
        started[0].kill()
        started[0].wait()
        yield colours(3)

    monkeypatch.setattr(encoding.subprocess, "Popen", noted)
    with pytest.raises(WorkerError, match="ffmpeg failed"):
        list(mp4_pieces(frames(), fps=8))
