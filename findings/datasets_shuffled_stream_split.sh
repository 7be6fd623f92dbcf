#!/usr/bin/env bash
# datasets 5.2.0: a validation set that is taken off a shuffled stream is trained on from the second epoch on.
#
# A stream is shuffled, its first 20 examples are taken for validation, and the rest is for training: in this order,
# since after `take` and `skip` the order of the files stays. In the first epoch the two have nothing in common. For
# the next one the training set is told its number, by `set_epoch`, as one does to have another order. But it is the
# shuffle below the split that gets the other order, and the examples to skip are counted after it: the training set
# now skips 20 other examples, and 16 of the 20 validation examples are in it. Nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.6

cat > "$folder/expected" <<'EOF'
epoch 0: 80 training examples, of them 0 of the 20 for validation
epoch 1: 80 training examples, of them 16 of the 20 for validation
EOF

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'EOF' ||
from datasets import Dataset

stream = Dataset.from_dict({"number": list(range(100))}).to_iterable_dataset(num_shards=4)
shuffled = stream.shuffle(seed=0, buffer_size=1000)
validation, training = shuffled.take(20), shuffled.skip(20)
held_out = {row["number"] for row in validation}
for epoch in (0, 1):
    training.set_epoch(epoch)
    trained_on = {row["number"] for row in training}
    common = len(trained_on & held_out)
    whole = f"{len(trained_on)} training examples"
    print(f"epoch {epoch}: {whole}, of them {common} of the {len(held_out)} for validation")
EOF
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
