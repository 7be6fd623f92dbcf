#!/usr/bin/env bash
# The first hour of a newcomer: a clean clone, and in it every command of README.md, the quick start and the how-to
# pages, in the order of reading. None may fail, and none may show a warning of ours.
#
#     scripts/first_hour.sh [FOLDER]
#
# FOLDER (a temporary one unless given) gets the clone of what is committed here. PYTHON=... is an interpreter that has
# what `pip install -e '.[dev]'` installs; without it, the clone installs that itself, by `make`, which takes a download
# of gigabytes. PAGES="README.md docs/quick_start.md" are only these.
#
# Commands run as docs/recipes.py has it: those that it shortens or skips are listed at the end, with the reason.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
if [[ ${PYTHON:-} == */* ]]; then PYTHON="$(realpath --no-symlinks "$PYTHON")"; fi

test -z "$(git -C "$here" status --porcelain)" || echo "Not all of this checkout is committed; the clone is of what is."
git clone --quiet "$here" "$folder/sde_diffusers"
test ! -d "$here/../shared" || ln -s "$(cd "$here/../shared" && pwd)" "$folder/shared" # data for pages that ask for it
cd "$folder/sde_diffusers"
how_to="$(sed -n '/^:caption: How to$/,/^```$/ s|^[a-z][a-z_/]*$|docs/&.md|p' docs/index.md)" # as the site lists them
pages="${PAGES:-README.md docs/index.md docs/quick_start.md $how_to}"

if [ -z "${PYTHON:-}" ]; then
    make .venv/installed
    PYTHON="$PWD/.venv/bin/python"
fi
export PYTHONPATH="$PWD" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

failed=0
for page in $pages; do
    began=$SECONDS
    output="$folder/$(basename "$page").log"
    if ! "$PYTHON" -m pytest -p docs.recipes "$page" -s -rs --no-fold-skipped -p no:cacheprovider > "$output" 2>&1; then
        result="FAILED, see $output" failed=1
    elif grep -E '\.py:[0-9]+: [A-Za-z]*Warning' "$output" | grep -vE 'site-packages|/lib/python|ShortenedRecipe' > /dev/null; then
        result="WARNED, see $output" failed=1
    else
        result="passed"
    fi
    echo "$page: $result ($((SECONDS - began)) s)"
    grep -E "^SKIPPED|ran with:" "$output" | sed 's/^/    /' || true
done
exit $failed
