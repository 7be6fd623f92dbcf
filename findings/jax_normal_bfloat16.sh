#!/usr/bin/env bash
# jax 0.10.2: normal noise in bfloat16 has 128 different values, none above 2.9, and a mean below 0.
#
# A bfloat16 can hold numbers of any size, with 8 bits each, and a normal number that is rounded to it would be fine.
# But `jax.random.normal` inverts the distribution function at a bfloat16 of uniform law, of which it has 128 between
# -1 and 1, the lower end among them and the upper one not. So there is nothing beyond 2.9 deviations, where one of 270
# numbers should be, and the mean of two million is sixteen standard errors below 0: a sampler that adds such noise a
# thousand times drifts. An event of probability 0.001 happens eight times too often. (float16 has 1,024 values.)
# Noise that is drawn in float32 and then converted is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0

cat > "$folder/expected" <<'END'
float32              : over 10,000 values, 0.0037 beyond 2.9, mean 0.001
float16              : 1024 values, 0.0040 beyond 2.9, mean -0.002
bfloat16             : 128 values, 0.0000 beyond 2.9, mean -0.011
float32 to bfloat16  : 3853 values, 0.0037 beyond 2.9, mean 0.001
bernoulli(0.001) with a probability in float32: 0.0010
bernoulli(0.001) with a probability in bfloat16: 0.0078
END

JAX_PLATFORMS=cpu "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
import jax
import jax.numpy as jnp
import numpy

key, count = jax.random.key(0), 2_000_000


def told(name, values):
    values = numpy.asarray(values, numpy.float64)
    size, beyond = len(numpy.unique(values)), (abs(values) > 2.9).sum()
    few = f"{size} values" if size < 10_000 else "over 10,000 values"
    print(f"{name}: {few}, {beyond / count:.4f} beyond 2.9, mean {values.mean():.3f}")


told("float32              ", jax.random.normal(key, (count,), jnp.float32))
told("float16              ", jax.random.normal(key, (count,), jnp.float16))
told("bfloat16             ", jax.random.normal(key, (count,), jnp.bfloat16))
told("float32 to bfloat16  ", jax.random.normal(key, (count,), jnp.float32).astype(jnp.bfloat16))
for dtype in (jnp.float32, jnp.bfloat16):
    share = jax.random.bernoulli(key, jnp.array(0.001, dtype), (count,)).mean()
    print(f"bernoulli(0.001) with a probability in {dtype.__name__}: {share:.4f}")
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
