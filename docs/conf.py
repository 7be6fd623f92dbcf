"""Configuration of the documentation site, which `make docs` writes to build/docs.

Every page works without the network: formulas become MathML when the site is built, fonts are the reader's own.
"""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from sde_diffusers import __version__

project = "sde_diffusers"
project_copyright = "the authors of sde_diffusers, Apache-2.0"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
nb_execution_mode = "off"  # the tutorial has its outputs; scripts/run_notebook.py runs it
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"  # of literal blocks in docstrings: equations
html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["wrap.css"]  # code within the column, on a phone, too
html_math_renderer = "mathml"

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
python_maximum_signature_line_length = 100
default_role = "py:obj"  # docstrings name arguments and objects in single backticks: links where there is a target
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # not every name in backticks is an object
    (
        "py:class",
        r"(abc|collections|diffusers|huggingface_hub|numpy|pathlib|PIL|torch)\..*",
    ),  # their documentation is elsewhere
    # Bases, named with the methods of what inherits them:
    ("py:class", r"sde_diffusers\.(models\.complete_weights\..*|.*Mixin)"),
    # Type variables:
    (
        "py:class",
        r"sde_diffusers\.(operators\.base\.OwnOperator|pipelines\.\w+\.Method|hub\.pipeline_mixin\.Pipeline)",
    ),
    ("py:(class|exc)", r'.*[" ].*'),  # words that napoleon takes for types
]

FIRST_SECTION = re.compile(r"(Args|Attributes|Raises|Returns)\b.*:$")


def mathml(formula, as_block):
    """MathML of LaTeX; what docutils does not know of it raises an error."""
    formula = re.sub(r"\\([bB]ig)(?![a-z])", r"\\\1l", formula).replace(r"\dots", r"\ldots")
    return tex2mathml(formula, as_block=as_block)


def inline_formula(writer, node):
    writer.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def displayed_formula(writer, node):
    formula = mathml(node.astext(), as_block=True)
    writer.body.append(f'<div style="overflow: auto hidden; padding: 0.3em 0">{formula}</div>')
    raise nodes.SkipNode


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text: `|x|` is a norm, and indented lines after an empty one are equations or code."""
    plain, literal, section = [], False, False
    for k, line in enumerate(lines):
        section = section or bool(FIRST_SECTION.match(line))
        indented = line.startswith("    ")
        if indented and not section and not literal and k and not lines[k - 1]:
            plain += ["::", ""]
            literal = True
        elif line and not indented:
            literal = False
        plain.append(line if literal else line.replace("|", r"\|"))
    lines[:] = plain


def setup(app):
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon reads the sections
