#!/usr/bin/env bash
# PyTorch 2.14.1: a network that is trained within one torch.autocast(...) answers as it did before the first step.
#
# Weights that were cast to half precision are kept until the outermost autocast context ends, since a step may need
# them twice. Their changing in between is not noticed: forward passes go on with the first ones. The losses of ten
# steps of gradient descent are all the same, while the weights, whose gradients are taken at the wrong place, run
# away: the loss rises from 8 to 21, and nobody sees it before the context ends. An outer context with enabled=False,
# as libraries wrap around what is to stay in float32, does the same to the autocast of each step. With
# `cache_enabled=False` all is well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
around the loop                           loss of the first, second, tenth step   of the weights in the end
nothing                                         8.13      4.78      0.26                   0.20
autocast                                        8.13      8.13      8.13                  21.32
autocast(enabled=False)                         8.13      8.13      8.13                  21.32
autocast(cache_enabled=False), twice            8.13      4.78      0.26                   0.20
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
from contextlib import nullcontext

import torch

x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
y = x.sum(1, keepdim=True)


def trained(around, **options):
    """Losses of ten steps of gradient descent within `around`, and the loss that the weights have afterwards."""
    torch.manual_seed(1)
    network, losses = torch.nn.Linear(8, 1), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with around:
        for _ in range(10):
            with torch.autocast("cpu", torch.bfloat16, **options):
                loss = (network(x) - y).square().mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses, (network(x) - y).square().mean().item()


print("around the loop                           loss of the first, second, tenth step   of the weights in the end")
for name, around, options in (
    ("nothing", nullcontext(), {}),
    ("autocast", torch.autocast("cpu", torch.bfloat16), {}),
    ("autocast(enabled=False)", torch.autocast("cpu", enabled=False), {}),
    ("autocast(cache_enabled=False), twice", torch.autocast("cpu", cache_enabled=False), {"cache_enabled": False}),
):
    losses, last = trained(around, **options)
    print(f"{name:36} {losses[0]:15.2f} {losses[1]:9.2f} {losses[9]:9.2f} {last:22.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
