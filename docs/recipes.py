"""Runs the recipes of README.md and docs/: `pytest -p docs.recipes README.md docs`, a part of `make test-docs`.

A recipe is a fenced block of `python` or `sh`. Those of a page run in order, Python ones in one namespace, in a copy
of the repository's files that the page has for itself. HTML comments above a block say what is different here:

    <!-- skip: next "why" -->             it is not run, and the reason is printed
    <!-- shortened: steps=4 -->           the words are appended to its command, and printed
    <!-- invisible-code-block: python     a block for the runner alone, say images that the page takes for granted
    ... -->

Blocks of `text`, `yaml` and `json`, and the directives of the site, are not run. Any other fenced block, one without a
language included, is an error: nothing that looks like a recipe goes unnoticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from xdist import is_xdist_worker

from docs.warm_commands import warm_commands

ROOT = Path(__file__).resolve().parents[1]
CACHE = tempfile.TemporaryDirectory(prefix="recipes-cache-")
# Read by huggingface_hub when it is imported: nothing is downloaded, and no cache of this machine is touched.
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=CACHE.name, MPLBACKEND="agg", TQDM_DISABLE="1")

from sybil import Region, Sybil  # noqa: E402
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser  # noqa: E402
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer  # noqa: E402

NOT_RUN = ("text", "yaml", "json")


class ShortenedRecipe(UserWarning):
    """A recipe was run with less work than its page says."""


class SkipWithReasonParser(SkipParser):
    """`skip`, which sybil itself also takes without a reason."""

    def __call__(self, document):
        for region in super().__call__(document):
            action, reason = region.parsed
            if action != "end" and not reason:
                raise ValueError(f"{document.path}: a skip has no reason")
            yield region


class ShellParser(CodeBlockParser):
    """Blocks of `sh`, run by bash, and `shortened` comments, which change the next one."""

    language = "sh"

    def __call__(self, document):
        yield from super().__call__(document)
        for region in DirectiveInHTMLCommentLexer("shortened", arguments=".+?")(document):
            yield Region(region.start, region.end, region.lexemes["arguments"].strip(), self.remember)

    def remember(self, example):
        example.namespace["appended words"] = example.parsed

    def evaluate(self, example):
        command, words = example.parsed.strip(), example.namespace.pop("appended words", "")
        if words:
            command = f"{command} {words}"
            place = f"{Path(example.path).relative_to(ROOT)}:{example.line}"
            warnings.warn(f"{place} ran with: {words}", ShortenedRecipe, stacklevel=2)
        # `python` is the one that runs this, warm where it can be.
        path = os.pathsep.join([os.environ["WARM_COMMANDS"], str(Path(sys.executable).parent), os.environ["PATH"]])
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(result.stdout)  # seen with `pytest -s`: scripts/first_hour.sh looks for warnings there
        assert result.returncode == 0, f"{command}\n{result.stdout}"


class LanguageParser:
    """Refuses fenced blocks that no other parser takes."""

    def __call__(self, document):
        for region in RawFencedCodeBlockLexer(mapping={"source": "source"})(document):
            line = document.text.count("\n", 0, region.start) + 1
            raise ValueError(f"{document.path}:{line}: a fenced block has no language")
        for region in CodeBlockParser("any", lambda example: None).lexers(document):
            language = region.lexemes["arguments"]
            if not language.startswith("{") and language not in ("python", "sh", *NOT_RUN):
                line = document.text.count("\n", 0, region.start) + 1
                raise ValueError(f"{document.path}:{line}: blocks of {language!r} are neither run nor known as text")
        return ()


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session):
    """One process imports for all workers, which inherit the variable."""
    if not is_xdist_worker(session):
        commands = warm_commands()
        os.environ["WARM_COMMANDS"] = commands.__enter__()
        session.config.add_cleanup(lambda: commands.__exit__(None, None, None))
    return (yield)


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory):
    """A copy of the tracked files, in which a page's recipes run."""
    folder = tmp_path_factory.mktemp("page") / "sde_diffusers"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    shutil.rmtree(folder)


pytest_collect_file = Sybil(
    parsers=[LanguageParser(), PythonCodeBlockParser(), ShellParser(), SkipWithReasonParser()],
    path=str(ROOT),
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    fixtures=["working_folder"],
).pytest()


def pytest_configure(config):
    # Reports carry no other warnings: what sde_diffusers itself warns of is an error in any case.
    for rule in ("ignore", "error:::sde_diffusers", f"always::{__name__}.ShortenedRecipe"):
        config.addinivalue_line("filterwarnings", rule)
