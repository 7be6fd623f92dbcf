#!/usr/bin/env bash
# accelerate 1.15.0: the last step of an epoch has a part of its gradient where the batches are no multiple of what is
# accumulated.
#
# Accelerator.backward divides each loss by gradient_accumulation_steps, and `accumulate` also ends a step with the
# last batch of the loader. With 4 batches a step and 10 in an epoch, the third step of each epoch has two batches and
# divides by 4: half a gradient, which here is seen as half a step. With 9 batches it is a quarter, and a data set of 3
# batches is trained with three quarters throughout. (A mean over what was accumulated would be 1 each time; to count
# on over the end of the loader, there is GradientAccumulationPlugin(sync_with_dataloader=False).)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    accelerate==1.15.0 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
 8 batches an epoch, 4 a step:  1.00  1.00  1.00  1.00
 9 batches an epoch, 4 a step:  1.00  1.00  0.25  1.00  1.00  0.25
10 batches an epoch, 4 a step:  1.00  1.00  0.50  1.00  1.00  0.50
 3 batches an epoch, 4 a step:  0.75  0.75
END

cd "$folder"
HOME="$folder" "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

ACCUMULATED = 4


class Mean(torch.nn.Module):
    """A parameter whose gradient is the mean of the examples."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (self.weight * x).mean()


def steps(batches, epochs=2):
    """By how much each step of gradient descent moves the parameter; each example's gradient is 1."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    network = Mean()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    loader = DataLoader(torch.ones(batches, 1), batch_size=1)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    found, before = [], 0.0
    for _ in range(epochs):
        for batch in loader:
            with accelerator.accumulate(network):
                accelerator.backward(network(batch))
                optimizer.step()
                optimizer.zero_grad()
            now = -network.weight.item()
            if now != before:
                found.append(now - before)
            before = now
    return found


for batches in 8, 9, 10, 3:
    print(f"{batches:2} batches an epoch, {ACCUMULATED} a step: ", "  ".join(f"{step:.2f}" for step in steps(batches)))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
