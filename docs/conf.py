"""How the site is built: `make docs` writes it to docs/_build/html, and fails on a warning."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from reference_pages import write_pages  # noqa: E402

from miga import __version__  # noqa: E402

write_pages(HERE / "reference")

project = "MIGA on Ray"
version = release = __version__
copyright = "the authors of MIGA on Ray"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "MIGA on Ray"
html_show_sphinx = False
html_static_path: list[str] = []
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nitpicky = True
smartquotes = False
linkcheck_timeout = 10
