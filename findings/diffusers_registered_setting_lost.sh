#!/usr/bin/env bash
# diffusers 0.42.1: a setting that was changed in a scheduler's configuration is lost when another sampler is made of it.
#
# `register_to_config` is how a configuration, which is frozen, is changed after construction; `config` then shows the
# new value, and saving writes it. But a key that the constructor was not given stays on the list of those that have
# their default, and `from_config` leaves these out: the other sampler asks a network of v-prediction for noise, without
# a word. Saved and loaded in between, or had the constructor been given the default, the setting goes along.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.14.1 numpy==2.4.6

cat > "$folder/expected" <<'END'
DDIM, as made:                                      epsilon
registered:                                         v_prediction
of that configuration, DDIM:                        epsilon
of that configuration, Euler:                       epsilon
saved, loaded, and of that configuration, Euler:    v_prediction
had "epsilon" been given, registered, and so Euler: v_prediction
END

cd "$folder"
"$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'END' ||
from diffusers import DDIMScheduler, EulerDiscreteScheduler


def report(what, scheduler):
    print(f"{what + ':':51} {scheduler.config.prediction_type}")


scheduler = DDIMScheduler()
report("DDIM, as made", scheduler)
scheduler.register_to_config(prediction_type="v_prediction")
report("registered", scheduler)
report("of that configuration, DDIM", DDIMScheduler.from_config(scheduler.config))
report("of that configuration, Euler", EulerDiscreteScheduler.from_config(scheduler.config))
scheduler.save_pretrained("scheduler")
loaded = DDIMScheduler.from_pretrained("scheduler")
report("saved, loaded, and of that configuration, Euler", EulerDiscreteScheduler.from_config(loaded.config))
given = DDIMScheduler(prediction_type="epsilon")
given.register_to_config(prediction_type="v_prediction")
report('had "epsilon" been given, registered, and so Euler', EulerDiscreteScheduler.from_config(given.config))
END
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
