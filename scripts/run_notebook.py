"""Run a notebook from top to bottom, and fail if any cell does:

    python scripts/run_notebook.py notebooks/tutorial.ipynb --fast --answers
    python scripts/run_notebook.py notebooks/tutorial.ipynb --output notebooks/tutorial.ipynb

The notebook runs in its own folder, in a new kernel. `--fast` sets TUTORIAL_FAST=1, which the tutorial takes as "much
less training"; `--answers` puts the folded answers of exercises into the cells that are empty for them (those with the
tag "exercise"), so that the checks after them have something to check. What comes out is discarded, or with `--output`
saved without what libraries wrote to stderr, times and versions, and with pictures of 256 colours, which are smaller.
Needs `pip install -e '.[docs]'`.
"""

import argparse
import base64
import io
import os
import re
import resource
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image
from tqdm import tqdm

ANSWER = re.compile(r"<details><summary>Answer</summary>\s*```python\n(.*?)\n```", re.DOTALL)
ROOT = Path(__file__).resolve().parents[1]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook, folder: Path, fast: bool, timeout: int) -> None:
    """Run the cells in place.

    Raises:
        CellExecutionError: with the cell and its traceback.
    """
    os.environ["TUTORIAL_FAST"] = "1" if fast else "0"  # the kernel inherits it
    code_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=code_cells, unit="cell") as bar:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            coalesce_streams=True,
            kernel_name=METADATA["kernelspec"]["name"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_complete=lambda cell, cell_index: bar.update(),
        )
        client.execute()


def fill_in(notebook) -> int:
    """Append each answer in code to the empty cell before it; their number."""
    answers, empty = 0, None
    for cell in notebook.cells:
        if "exercise" in cell.metadata.get("tags", []):
            empty = cell
        elif empty is not None and (answer := ANSWER.search(cell.source)):
            empty.source += f"\n\n\n{answer[1]}"
            answers, empty = answers + 1, None
    return answers


def with_few_colours(png: str) -> str:
    """A base64-encoded PNG, as a palette of 256 colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def clean(notebook) -> None:
    """Keep what belongs to the notebook alone; what libraries wrote to stderr is printed here instead.

    Raises:
        ValueError: if an output names this checkout's folder or the home folder.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.get("name") == "stderr":
                print(output.text, file=sys.stderr)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_few_colours(output.data["image/png"])
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for path in (str(ROOT), str(Path.home())):
            if any(path + os.sep in str(output) for output in cell.outputs):
                raise ValueError(f"An output names {path}, a folder of this machine:\n{cell.source}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--fast", action="store_true", help="set TUTORIAL_FAST=1")
    parser.add_argument("--answers", action="store_true", help="fill in the answers of exercises")
    parser.add_argument("--output", type=Path, help="file for the executed notebook")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds that one cell may take")
    arguments = parser.parse_args()
    notebook = nbformat.read(arguments.notebook, as_version=4)
    if arguments.answers:
        if arguments.output:
            parser.error("--answers is to check them, and would leave no exercises in --output")
        print(f"answers filled in: {fill_in(notebook)}")
    began = time.perf_counter()
    try:
        execute(notebook, arguments.notebook.resolve().parent, arguments.fast, arguments.timeout)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{arguments.notebook}: {wall:.0f} s, of processors {used.ru_utime + used.ru_stime:.0f} s")
    if arguments.output:
        clean(notebook)
        nbformat.validate(notebook)
        temporary = arguments.output.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
