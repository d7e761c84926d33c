"""What Sphinx is told; `python tutorials/build.py --site DIR` calls it."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent)]  # edition.py, index.py

project = "minicenternet: the course"
extensions = ["myst_nb", "edition"]
html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_static_path = []
nb_execution_mode = "off"  # the notebooks come executed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
