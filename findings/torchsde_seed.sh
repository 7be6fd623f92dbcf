#!/usr/bin/env bash
# torchsde 0.2.6: torch.manual_seed does not fix the paths of a stochastic differential equation; numpy's seed does.
#
# Everything is tensors of PyTorch, and the noise is drawn by PyTorch. But the number from which `sdeint` seeds it
# comes from NumPy's old global state: two solutions after the same `torch.manual_seed` have nothing in common, and
# processes that start from a copy of that state all have the same noise, whatever seed PyTorch has in each of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torchsde==0.2.6 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
equal after torch.manual_seed(0), twice:    False
equal after numpy.random.seed(0), twice:    True
equal after torch.manual_seed(1) and (2), NumPy's state as before: True
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy
import torch
import torchsde


class Brownian(torch.nn.Module):
    """dy = dw."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return torch.zeros_like(y)

    def g(self, t, y):
        return torch.ones_like(y)


def solution():
    return torchsde.sdeint(Brownian(), torch.zeros(1000, 1), torch.tensor([0.0, 1.0]), dt=0.1)[-1]


def equal(*seeds, seed):
    solutions = []
    for number in seeds:
        seed(number)
        solutions.append(solution())
    return torch.equal(*solutions)


print("equal after torch.manual_seed(0), twice:   ", equal(0, 0, seed=torch.manual_seed))
print("equal after numpy.random.seed(0), twice:   ", equal(0, 0, seed=numpy.random.seed))
torch.manual_seed(0)
state = numpy.random.get_state()
print("equal after torch.manual_seed(1) and (2), NumPy's state as before:",
      equal(1, 2, seed=lambda number: (torch.manual_seed(number), numpy.random.set_state(state))))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
