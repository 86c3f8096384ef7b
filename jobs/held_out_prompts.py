"""Prompts of the sprite world that training never shows, as a prompt file.

python -m jobs.held_out_prompts 32 > examples/held_out.jsonl
"""

from __future__ import annotations

import argparse
import json

from miga.backbones.sprites.world import TEMPLATES, held_out_scenes


def held_out_lines(count: int, seed: int) -> list[str]:
    """Lines of a prompt file: distinct held-out scenes in a seeded order, in each wording in turn, without seeds."""
    return [
        json.dumps({"id": f"held-out-{number:02d}", "prompt": scene.caption(number % len(TEMPLATES))})
        for number, scene in enumerate(held_out_scenes(count, seed=seed))
    ]


def main(arguments: list[str] | None = None) -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(prog="python -m jobs.held_out_prompts", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1, help="of the order (default: 1)")
    options = parser.parse_args(arguments)
    print("\n".join(held_out_lines(options.count, options.seed)))


if __name__ == "__main__":
    main()
