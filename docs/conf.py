"""Settings of the documentation site; `make docs` builds it into `docs/_build/html`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from dmole import __version__  # noqa: E402 - the checkout beside this file, not an installed copy

project = "dmole"
author = "the dmole authors"
copyright = "the dmole authors, Apache-2.0"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "api_pages",
    "mathml",
]
exclude_patterns = ["_build", "_ext", "examples", "results", "**.ipynb_checkpoints"]
nitpicky = True

# -- pages -------------------------------------------------------------------------------------
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebooks; the site shows them as they are committed
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- API ---------------------------------------------------------------------------------------
default_role = "code"  # single backticks in docstrings are code
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
# Types of other libraries have no page here, and the build reads no inventory from the network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|lightning|pytorch_lightning|transformers|torchmetrics|numpy|npt|np|PIL|pyarrow"
        r"|collections|typing|types|pathlib|argparse|abc|contextlib|multiprocessing|logging|random"
        r"|subprocess|concurrent|socket|pydantic|uvicorn|fastapi|starlette)"
        r"(\..*)?",
    ),
    # the same, where an annotation names them as its file imports them
    (
        r"py:class",
        r"T|Tensor|Path|Callback|Logger|Dataset|AbstractContextManager|OptimizerCallable"
        r"|nn\.(Module|Linear|Parameter)",
    ),
]

# -- HTML: nothing comes from another host, so the site works from a folder --------------------
html_theme = "furo"
html_title = f"dmole {version}"
html_static_path = ["_static"]
html_css_files = ["dmole.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
