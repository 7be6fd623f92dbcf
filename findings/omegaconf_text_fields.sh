#!/usr/bin/env bash
# omegaconf 2.4.0: a field that is declared as text does not get the text that was typed.
#
# `name: str` in a dataclass says that a name is text, so that a run may be called 010. But words of a command line are
# read as YAML before anybody looks at the field: what could be a number or a truth value becomes one, and is then made
# text again, from its value. So 010 is called 8, "no" False, and version 3.10 is 3.1; two names may become one. The
# same holds for a YAML file. No error and no warning, since each value can be converted; quotes inside the word help.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check omegaconf==2.4.0

cat > "$folder/expected" <<'EOF'
name=010 -> '8'
name=no -> 'False'
name=3.10 -> '3.1'
name=1e3 -> '1000.0'
name=2024_01 -> '202401'
name=1:30 -> '90'
name="010" -> '010'
EOF

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'EOF' ||
from dataclasses import dataclass

from omegaconf import OmegaConf


@dataclass
class Run:
    name: str = "first"


for word in ("010", "no", "3.10", "1e3", "2024_01", "1:30", '"010"'):
    run = OmegaConf.merge(OmegaConf.structured(Run), OmegaConf.from_dotlist([f"name={word}"]))
    assert isinstance(run.name, str)
    print(f"name={word} -> {run.name!r}")
EOF
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
