#!/usr/bin/env bash
# torchcfm 1.0.7: with optimal transport a batch of 128 images trains on 81 of them, some four times.
#
# ExactOptimalTransportConditionalFlowMatcher pairs noise and images of a batch so that their ways are short. The best
# pairing of equally many is a permutation. What the matcher trains on are 128 draws from its pairs with replacement,
# so that more than a third of a batch is left out, and others count several times; over an epoch, in which each image
# is in one batch, as many are not seen at all. The sampler has replace=False for that, which the matcher cannot be told.
# The draws are NumPy's: torch.manual_seed does not fix them. The plain matcher uses each image once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    pot==0.9.7.post1 scipy==1.17.1 torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps torchcfm==1.0.7

cat > "$folder/expected" <<'END'
                                          images used   most often   never in an epoch of 1,024
ConditionalFlowMatcher                            128            1            0
ExactOptimalTransport...                           81            4          377
its pairs without replacement                     128            1            0
the same seed of torch, the same images         False
the same seed of NumPy, the same images          True
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import numpy as np
import torch
from torchcfm import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

images = torch.rand(1024, 64, generator=torch.Generator().manual_seed(0))
plain, exact = ConditionalFlowMatcher(sigma=0.0), ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)


def numbers(matcher, batch, **replace):
    """The numbers of the images of a batch that are trained on."""
    noise = torch.randn(len(batch), 64)
    if replace:
        i, j = matcher.ot_sampler.sample_map(matcher.ot_sampler.get_map(noise, images[batch]), len(batch), **replace)
        return batch[torch.from_numpy(j)]
    if matcher is plain:  # pairs them as they come
        _, x, flow = matcher.sample_location_and_conditional_flow(noise, images[batch], t=torch.ones(len(batch)))
        return batch[torch.cdist(x, images[batch]).argmin(1)]
    return matcher.guided_sample_location_and_conditional_flow(noise, images[batch], y1=batch)[-1]


def row(name, matcher, **replace):
    np.random.seed(0)
    torch.manual_seed(0)
    epoch = [numbers(matcher, batch, **replace) for batch in torch.arange(1024).split(128)]
    used, often = epoch[0].unique(return_counts=True)
    print(f"{name:39} {len(used):13d} {often.max():12d} {1024 - len(torch.cat(epoch).unique()):12d}")


print(f"{'':39} {'images used':>13} {'most often':>12}   never in an epoch of 1,024")
row("ConditionalFlowMatcher", plain)
row("ExactOptimalTransport...", exact)
row("its pairs without replacement", exact, replace=False)
for name, seed in {"torch": torch.manual_seed, "NumPy": np.random.seed}.items():
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        seed(1)
        drawn.append(numbers(exact, torch.arange(128)))
    print(f"{f'the same seed of {name}, the same images':39} {torch.equal(*drawn)!s:>13}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
