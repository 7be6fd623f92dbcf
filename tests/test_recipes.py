"""The runner of the documentation's recipes, on pages of its own: what fails, what is skipped, what is shortened."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GOOD = """
```python
value = 1
open("written-by-python", "w").close()
```

```sh
test -e written-by-python && echo $# > arguments
```

<!-- shortened: first second -->
```sh
python -c "import sys; open('words', 'w').write(' '.join(sys.argv[1:]))"
```

```python
assert value == 1 and open("words").read() == "first second"
```

<!-- skip: next "needs a machine that nobody has" -->
```sh
exit 1
```

```text
not a recipe
```
"""


def run(folder, pages):
    """The exit status and output of the runner for a repository of some pages, {name: text}."""
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "recipes.py", folder / "docs")
    for name, text in pages.items():
        (folder / "docs" / f"{name}.md").write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    options = ["-p", "no:cacheprovider", "-rs", "--continue-on-collection-errors", "docs"]
    command = [sys.executable, "-m", "pytest", "-p", "docs.recipes", *options]
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert {path.name for path in folder.iterdir()} == {".git", "docs"}  # recipes run in a copy
    return result.returncode, result.stdout


def test_a_page_runs_in_order_with_what_is_skipped_and_shortened_reported(tmp_path):
    status, output = run(tmp_path, {"good": GOOD})
    assert status == 0, output
    assert "1 skipped" in output and "needs a machine that nobody has" in output
    assert re.search(r"docs/good.md:\d+ ran with: first second", output)


def test_recipes_that_fail_and_blocks_that_would_go_unnoticed_are_errors(tmp_path):
    pages = {
        "wrong_python": "```python\nassert 1 == 2\n```\n",
        "wrong_shell": "```sh\nfalse\necho went on\n```\n",
        "no_reason": "<!-- skip: next -->\n```sh\ntrue\n```\n",
        "no_language": "```\nmake test\n```\n",
        "other_language": "```bash\nmake test\n```\n",
    }
    status, output = run(tmp_path, pages)
    assert status != 0 and "2 failed, 3 errors" in output, output
    assert "assert 1 == 2" in output and "AssertionError: false" in output
    assert "docs/no_reason.md: a skip has no reason" in output
    assert "docs/no_language.md:1: a fenced block has no language" in output
    assert "docs/other_language.md:1: blocks of 'bash' are neither run nor known as text" in output


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the script clones, and this is no git checkout")
def test_the_first_hour_has_all_pages_that_a_newcomer_follows(tmp_path):
    """With a `python` that does nothing: which pages, in which order."""
    command = [ROOT / "scripts" / "first_hour.sh", tmp_path]
    environment = {**os.environ, "PYTHON": "true", "PAGES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    pages = re.findall(r"^(\S+): passed", done.stdout, re.MULTILINE)
    assert pages[:3] == ["README.md", "docs/index.md", "docs/quick_start.md"] and len(set(pages)) == len(pages)
    assert {f"docs/how_to/{path.name}" for path in (ROOT / "docs" / "how_to").glob("*.md")} <= set(pages)
    assert all((ROOT / page).is_file() for page in pages)
