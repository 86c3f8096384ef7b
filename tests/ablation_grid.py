"""A grid for `miga ablate` on the tiny model: settings, a table that can be made, and one that cannot."""

GRID = """
[settings.plain]
profile = "no-reflection"
[settings.wide]
profile = "no-reflection"
sampler = { zigzag_width = 4, num_guidance_latents = 0 }
[settings.again]
profile = "paper"
sampler = { self_reflection = false }

[[tables]]
name = "width"
title = "the width"
header = ["L_zig"]
columns = ["sc", "bc", "ms", "tf", "os", "motion", "calls"]
rows = [
    { cells = ["2"], setting = "plain", x = 2.0 },
    { cells = ["4"], setting = "wide", x = 4.0 },
    { cells = ["2 again"], setting = "again" },
]
plot = { file = "fig-width", x_label = "L_zig", left = ["os"], right = ["calls"] }

[[tables]]
name = "bad"
title = "a width that does not divide the window"
header = ["L_zig"]
columns = ["os"]
rows = [{ cells = ["2"], setting = "plain" }, { cells = ["3"], setting = "odd" }]
[settings.odd]
profile = "paper"
sampler = { zigzag_width = 3 }
"""
