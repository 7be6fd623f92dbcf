#!/usr/bin/env bash
# optax 0.2.8: schedule-free training with one array in half precision leaves the weights in float32 untrained.
#
# The weights to be used are not those of the last step but the mean of all steps, each with the squared learning rate
# as its weight. The sum of these weights is kept with the least precise dtype among the parameters. One frozen table
# in float16 is enough: the square of 1e-4 is 0 there, and the mean of all other parameters stays where it began,
# however long the training is. In bfloat16 the sum stops to grow after some hundred steps; the mean is then that of the
# last few hundred, with more of the noise it should take out. Nothing is said, and the loss that is seen in training,
# that of other weights, falls as ever. state_dtype, for another state, changes nothing. Below, eight weights are fitted
# to data with much noise; the table has no part in it. Arrays that are not trained are best kept out of the parameters.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

cat > "$folder/expected" <<'END'
distance of the weights from the truth, at first 1.85
                  beside a table in
rate     steps    float32  bfloat16  float16  float16, with state_dtype float32
1e-02    10000    0.13     0.22      0.16     0.16
1e-04    10000    1.49     1.21      1.85     1.85
1e-04    50000    0.45     0.16      1.85     1.85
END

cd "$folder"
HOME="$folder" JAX_PLATFORMS=cpu "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import jax
import jax.numpy as jnp
import optax

TRUTH = jnp.linspace(-1, 1, 8)


def distance(dtype, rate, steps, **settings):
    """How far the weights are from the truth after training, next to a table that no loss depends on."""
    parameters = {"weights": jnp.zeros(8), "table": jnp.zeros(3, dtype)}
    optimiser = optax.contrib.schedule_free_adamw(rate, **settings)

    def loss(parameters, key):
        inputs, noise = jax.random.normal(key, (2, 4, 8))
        return jnp.mean((inputs @ (parameters["weights"] - TRUTH) - 4 * noise[:, 0]) ** 2)

    def step(carry, key):
        parameters, state = carry
        updates, state = optimiser.update(jax.grad(loss)(parameters, key), state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jax.random.split(jax.random.key(0), steps)
    (parameters, state), _ = jax.lax.scan(step, (parameters, optimiser.init(parameters)), keys)
    return jnp.linalg.norm(optax.contrib.schedule_free_eval_params(state, parameters)["weights"] - TRUTH)


print(f"distance of the weights from the truth, at first {jnp.linalg.norm(TRUTH):.2f}")
print("                  beside a table in")
print("rate     steps    float32  bfloat16  float16  float16, with state_dtype float32")
for rate, steps in ((1e-2, 10_000), (1e-4, 10_000), (1e-4, 50_000)):
    told = [distance(dtype, rate, steps) for dtype in ("float32", "bfloat16", "float16")]
    told.append(distance("float16", rate, steps, state_dtype=jnp.float32))
    print(f"{rate:.0e}{steps:9}    {told[0]:.2f}     {told[1]:.2f}      {told[2]:.2f}     {told[3]:.2f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
