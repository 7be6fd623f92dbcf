#!/usr/bin/env bash
# FrEIA 0.2: LearnedElementwiseScaling has the wrong sign in its log-determinant from latents to samples.
#
# Every invertible module of FrEIA returns the logarithm of its determinant with its output, in both directions, and
# the two are expected to cancel. LearnedElementwiseScaling returns the same one in both: trained by maximum
# likelihood, which goes from data to latents, it is right, but the density that comes with samples is not, and a flow
# that is trained by the density of its own samples, as in variational inference, collapses to a point. (What is
# summed is self.s, and not the scale whose sign is changed in reverse.) Nor has init_scale, "the initial scaling
# value", any effect: its logarithm is multiplied by zeros. ActNorm, which scales channels, and InvAutoActTwoSided are
# right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check FrEIA==0.2 torch==2.14.1 numpy==2.4.6 scipy==1.17.1

cat > "$folder/expected" <<'END'
                           factor to start with
                           asked   seen
LearnedElementwiseScaling  0.5     1.0
LearnedElementwiseScaling  4.0     1.0
InvAutoActTwoSided         0.5     0.5
InvAutoActTwoSided         4.0     4.0
                           deviations    log-density of samples
                           of samples    as drawn  mapped back  exact
trained by likelihood, to deviations 3.0, 0.2, 0.2
LearnedElementwiseScaling  3.0   0.2   0.2   -6        -2           -2
ActNorm                    3.0   0.2   0.2   -2        -2           -2
trained by divergence, to deviations 3.0, 0.2, 0.2
LearnedElementwiseScaling  0.0   0.1   0.1   -17       9            9
ActNorm                    3.0   0.2   0.2   -2        -2           -2
END

"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import ActNorm, InvAutoActTwoSided, LearnedElementwiseScaling

torch.set_default_dtype(torch.float64)
NORMAL = torch.distributions.Normal(0.0, 1.0)
TARGET = torch.distributions.Normal(0.0, torch.tensor([3.0, 0.2, 0.2]))


def train(flow, loss):
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 500)
        optimizer.zero_grad()
        loss(flow).backward()
        optimizer.step()


def likelihood(flow):
    latents, jacobian = flow(data)
    return -(NORMAL.log_prob(latents).sum(1) + jacobian).mean()


def divergence(flow):
    latents = torch.randn(2000, 3)
    samples, jacobian = flow(latents, rev=True)
    return (NORMAL.log_prob(latents).sum(1) - jacobian - TARGET.log_prob(samples).sum(1)).mean()


print("                           factor to start with")
print("                           asked   seen")
for module, name in ((LearnedElementwiseScaling, "init_scale"), (InvAutoActTwoSided, "init_pos")):
    for scale in (0.5, 4.0):
        flow = SequenceINN(3)
        flow.append(module, **{name: scale})
        print(f"{module.__name__:26} {scale}     {flow(torch.ones(1, 3))[0][0, 0]:.1f}")

print("                           deviations    log-density of samples")
print("                           of samples    as drawn  mapped back  exact")
for loss in (likelihood, divergence):
    print(f"trained by {loss.__name__}, to deviations 3.0, 0.2, 0.2")
    for module in (LearnedElementwiseScaling, ActNorm):
        torch.manual_seed(0)
        data = TARGET.sample((20_000,))
        flow = SequenceINN(3)
        flow.append(module)
        flow(data)  # ActNorm starts from the first batch it sees
        train(flow, loss)
        with torch.no_grad():
            latents = torch.randn(50_000, 3)
            samples, jacobian = flow(latents, rev=True)
            drawn = (NORMAL.log_prob(latents).sum(1) - jacobian).mean()
            latents, jacobian = flow(samples)
            back = (NORMAL.log_prob(latents).sum(1) + jacobian).mean()
            deviations = samples.std(0)
            exact = torch.distributions.Normal(0.0, deviations).log_prob(samples).sum(1).mean()
        told = "   ".join(f"{deviation:.1f}" for deviation in deviations)
        print(f"{module.__name__:26} {told}   {drawn:<9.0f} {back:<12.0f} {exact:.0f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
