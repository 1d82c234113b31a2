"""How Sphinx builds the manual: ``docs/build``; every warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from hil import __version__

project = "san-hil"
author = "the san-hil authors"
copyright = "the san-hil authors, MIT licence"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# pyverbs exists on nodes only.
autodoc_mock_imports = ["pyverbs"]

nitpicky = True
# Annotations name types of the standard library and of inner modules, which have no page.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = f"san-hil {__version__}"
html_show_copyright = False
