#!/usr/bin/env bash
# datasets 5.2.0: casting a dataset to the features of another one, with the same classes in another order, changes
# what its images are labelled as.
#
# Two sets of pictures of cats and dogs list their classes in different orders. `concatenate_datasets` refuses them,
# and says that their features differ; `cast` to the other's features makes them equal, and the error goes away. But it
# keeps each label's number and puts the other list of names over it: every dog of the second set is a cat from then
# on. Nothing is said. (`align_labels_with_mapping` is what keeps the names.) A longer list of classes does the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.6

cat > "$folder/expected" <<'EOF'
first:  cat.png is cat, dog.png is dog
second: rex.png is dog, fido.png is dog, tom.png is cat
concatenated: refused
concatenated after a cast: cat.png is cat, dog.png is dog, rex.png is cat, fido.png is cat, tom.png is dog
first, cast to more classes: cat.png is bird, dog.png is cat
EOF

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -I - > "$folder/seen" 2> "$folder/errors" <<'EOF' ||
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets


def pictures(classes, labels):
    """A dataset of files with the words that are their labels."""
    features = Features({"file": Value("string"), "label": ClassLabel(names=classes)})
    return Dataset.from_dict({"file": list(labels), "label": list(labels.values())}, features=features)


def told(dataset):
    name = dataset.features["label"].int2str
    return ", ".join(f"{row['file']} is {name(row['label'])}" for row in dataset)


first = pictures(["cat", "dog"], {"cat.png": "cat", "dog.png": "dog"})
second = pictures(["dog", "cat"], {"rex.png": "dog", "fido.png": "dog", "tom.png": "cat"})
more = pictures(["bird", "cat", "dog"], {})
print("first: ", told(first))
print("second:", told(second))
try:
    print("concatenated:", told(concatenate_datasets([first, second])))
except ValueError:
    print("concatenated: refused")
print("concatenated after a cast:", told(concatenate_datasets([first, second.cast(first.features)])))
print("first, cast to more classes:", told(first.cast(more.features)))
EOF
{ cat "$folder/errors" >&2; exit 1; }
diff "$folder/expected" "$folder/seen" && cat "$folder/seen"
