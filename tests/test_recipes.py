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

WARM = """
```python
open("told.py", "w").write('''
import os, sys
assert "torch" in sys.modules and "sde_diffusers" not in sys.modules
print(*sys.argv[1:], os.environ["TOLD"], os.path.basename(os.getcwd()), sys.stdin.read(), file=sys.stderr)
sys.exit(3)
''')
open("interrupted.py", "w").write('''
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("got it"))
open("began", "w").close()
time.sleep(300)
''')
open("killed.py", "w").write("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
```

```sh
status=0
echo -n input | TOLD=yes python told.py "two words" 2> told || status=$?
test $status = 3
test "$(cat told)" = "two words yes sde_diffusers input"
```

```sh
python interrupted.py 2> interrupted & process=$!
until test -e began; do sleep 0.1; done
kill $process
status=0
wait $process || status=$?
test $status = 1
test "$(cat interrupted)" = "got it"
```

```sh
status=0
python killed.py || status=$?
test $status = 137
python -c "import sys; assert 'torch' not in sys.modules"
accelerate env > /dev/null
```
"""


def run(folder, pages):
    """The exit status and output of the runner for a repository of some pages, {name: text}."""
    (folder / "docs").mkdir()
    for name in ("recipes.py", "warm_commands.py"):
        shutil.copy(ROOT / "docs" / name, folder / "docs")
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


def test_commands_that_are_forks_are_as_processes_of_their_own(tmp_path):
    status, output = run(tmp_path, {"warm": WARM})
    assert status == 0, output


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
