"""`miga sample`: one video of one prompt, in this process."""

from __future__ import annotations

import argparse
import signal
from typing import Any, Final

from jobs.commands.common import (
    add_config_options,
    add_model_options,
    add_sampler_options,
    default_of,
    model_settings,
    say_unless,
    show_values,
)
from jobs.shared.exit_status import EXIT_FAILED, EXIT_OK
from pipeline.terminal import say, show

GROUP: Final = "make videos"
EXAMPLES: Final = (
    'miga sample "a red circle moving side to side on a grey ground" out.mp4',
    'miga sample "the dog runs off" dog.mp4 --image dog.jpg --model Wan-AI/Wan2.2-TI2V-5B-Diffusers',
    'miga sample "a corgi on a beach" corgi.mp4 --config wan --num-frames 321 --seed 7',
)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "make one video of one prompt: no prompt file, no Ray"
    sample = commands.add_parser("sample", help=text, description=text)
    sample.add_argument("prompt", metavar="PROMPT", help="the prompt itself, in the shell's quotes")
    sample.add_argument("out", metavar="OUT.mp4", help="the file to make")
    add_config_options(sample.add_argument_group("config"))
    add_model_options(sample.add_argument_group("model"))

    video = sample.add_argument_group("video")
    add_sampler_options(video)
    video.add_argument("--num-frames", type=int, help="its length (default: the model's)")
    video.add_argument("--seed", type=int, help=f"of its noise: the same seed, the same video {default_of('seed')}")
    video.add_argument("--negative-prompt", help="what guidance steers away from (default: the model's)")
    video.add_argument("--image", help="picture that it begins with: a path or an address")
    video.add_argument("--last-image", help="picture that it ends with, where the model takes one")
    video.add_argument("--device", help="cpu or cuda[:N] (default: a GPU, if there is one)")
    video.add_argument("--overwrite", action="store_true", help="replace OUT.mp4 if it is there")

    printed = sample.add_argument_group("what is printed")
    printed.add_argument("--json", action="store_true", help="print what was made for machines")
    printed.add_argument("--quiet", action="store_true", help="no progress")
    sample.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.sampling.make import make_sample, plan_sample
    from jobs.shared.prompt_argument import refuse_prompt_file
    from jobs.shared.run_config import read_config

    refuse_prompt_file(options.prompt, options.out)
    config = read_config(
        options.config,
        options.settings,
        **model_settings(options),
        profile=options.profile,
        num_frames=options.num_frames,
        seed=options.seed,
    )
    plan = plan_sample(
        options.prompt,
        options.out,
        config,
        negative_prompt=options.negative_prompt,
        device=options.device,
        image=options.image,
        last_image=options.last_image,
        overwrite=options.overwrite,
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    bar = _CallBar(plan.num_calls, is_quiet=options.quiet)
    try:
        made = make_sample(plan, say_unless(options.quiet), bar.at)
    except KeyboardInterrupt:
        bar.close()
        say(f"miga: stopped; {plan.out} was not made")
        return EXIT_FAILED
    finally:
        bar.close()
        signal.signal(signal.SIGTERM, before)
    if options.json:
        show_values(made, as_json=True)
    else:
        show(
            f"{made['num_frames']} frames, {made['duration_s']:.1f} s of video at {made['fps']} a second, "
            f"{made['width']}x{made['height']} in {made['seconds']:.0f} s by {made['network_calls']} network calls",
            f"video: {made['video']}",
        )
    return EXIT_OK


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends the video as Ctrl-C does: no partial file is left."""
    raise KeyboardInterrupt


class _CallBar:
    """Network calls on a terminal, as a bar with the time left; nothing in a pipe, or where it is to be quiet."""

    def __init__(self, num_calls: int, *, is_quiet: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=num_calls, unit="call", disable=True if is_quiet else None, leave=False)

    def at(self, done: int, total: int) -> None:
        """Shows calls made, and how many there will be."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()
