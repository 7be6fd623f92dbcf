#!/usr/bin/env bash
# safetensors 0.8.0: a transposed numpy array comes back with its numbers in other places.
#
# `save_file` of safetensors.numpy writes the shape of an array, and beside it the memory as it lies there. A
# transposed matrix is dense and contiguous, but in Fortran's order, as are many results of LAPACK: its columns are
# read back as if they were rows. The shape is right, the numbers are all there, and nothing is said. (Release 0.7.0
# saves it right, and so is a copy by `numpy.ascontiguousarray`; the same function for PyTorch refuses it.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6

cat > "$folder/expected" <<'EOF'
saved:  [[0, 3], [1, 4], [2, 5]]
loaded: [[0, 1], [2, 3], [4, 5]]
loaded, of a copy in C's order: [[0, 3], [1, 4], [2, 5]]
EOF

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'EOF' ||
import numpy
from safetensors.numpy import load_file, save_file

matrix = numpy.arange(6).reshape(2, 3).T
assert matrix.flags.f_contiguous
print("saved: ", matrix.tolist())
save_file({"as it is": matrix, "copy": numpy.ascontiguousarray(matrix)}, "matrix.safetensors")
loaded = load_file("matrix.safetensors")
print("loaded:", loaded["as it is"].tolist())
print("loaded, of a copy in C's order:", loaded["copy"].tolist())
EOF
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
