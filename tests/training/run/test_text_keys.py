"""Keys of type text hold the word that was written, wherever it was written."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from evaluation.config import read_evaluation_config
from run.classifier_config import read_classifier_config
from run.config import read_config
from run.yaml_config import ConfigError, merge, save_config

WORDS = ["no", "on", "off", "yes", "true", "010", "2024_01", "1:30", "1e3", "2024-01-05", "0x1f", "1.0", ".5", "-1"]


@dataclass
class Section:
    text: str = "x"
    perhaps: str | None = "x"
    count: int | None = None
    flag: bool | None = None


@dataclass
class Schema:
    text: str = "x"
    section: Section = field(default_factory=Section)
    listed: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    pair: tuple[str, float] = ("x", 0.0)
    perhaps_listed: list[str] | None = None
    anything: dict[str, Any] = field(default_factory=dict)
    number: float = 0.0
    count: int = 0


def read(tmp_path, text="", *words):
    (tmp_path / "file.yaml").write_text(text)
    return merge(Schema, {}, [str(tmp_path / "file.yaml")], list(words))


@pytest.mark.parametrize("word", WORDS)
def test_words_stay_words(tmp_path, word):
    text = f"text: {word}\nsection: {{text: {word}, perhaps: {word}}}\nlisted: [{word}, '{word}']\n"
    text += f"named: {{{word}: {word}}}\npair: [{word}, 1]\nperhaps_listed:\n- {word}\n"
    words = [f"text={word}", f"section.text={word}", f"section.perhaps={word}", f"listed=[{word}, '{word}']"]
    words += [f"named={{{word}: {word}}}", f"pair=[{word}, 1]", f"perhaps_listed=[{word}]"]
    (tmp_path / "base.yaml").write_text(text)
    for config in (read(tmp_path, text), read(tmp_path, "", *words), read(tmp_path, "base: base.yaml\nnumber: 1")):
        assert config.text == config.section.text == config.section.perhaps == config.pair[0] == word
        assert config.listed == [word, word] and config.named == {word: word} and config.perhaps_listed == [word]
    save_config(config, tmp_path / "saved.yaml")
    assert read(tmp_path, "base: saved.yaml") == config


@pytest.mark.parametrize("nothing", ["null", "~", "", "Null"])
def test_nothing_stays_nothing(tmp_path, nothing):
    for config in (
        read(tmp_path, f"section:\n  perhaps: {nothing}"),
        read(tmp_path, "", f"section.perhaps={nothing}"),
    ):
        assert config.section.perhaps is None
    for arguments in ((f"text: {nothing}",), ("", f"text={nothing}")):
        with pytest.raises(ConfigError, match="text"):
            read(tmp_path, *arguments)
    for config in (read(tmp_path, "section: {perhaps: 'null'}"), read(tmp_path, "", "section.perhaps='null'")):
        assert config.section.perhaps == "null"


@pytest.mark.parametrize("written", ["a: b", "[a]", "x #y", "a b", "*a", "it's", "{a}", "a=b", "- a", "%a", "a:"])
def test_a_word_on_the_command_line_need_not_be_yaml(tmp_path, written):
    assert read(tmp_path, "", f"text={written}", f"section.perhaps={written}").text == written
    quoted = written.replace("'", "''")
    assert read(tmp_path, f"text: '{quoted}'").text == read(tmp_path, "", f"text='{quoted}'").text == written


def test_other_types_are_what_they_were(tmp_path):
    text = (
        "count: 1_000\nnumber: 1e-3\nsection: {flag: no, count: null}\nanything: {a: no, b: 1e-3, c: [1, x], d: null}"
    )
    words = ["count=1_000", "number=1e-3", "section.flag=no", "section.count=null"]
    words += ["anything.a=no", "anything.b=1e-3", "anything.c=[1, x]", "anything.d=null"]
    for config in (read(tmp_path, text), read(tmp_path, "", *words)):
        assert (config.count, config.number, config.section.flag, config.section.count) == (1000, 0.001, False, None)
        assert config.anything == {"a": False, "b": 0.001, "c": [1, "x"], "d": None}
    assert read(tmp_path, "count: 010").count == read(tmp_path, "", "count=010").count == 10
    for arguments in (("count: 1:30",), ("", "count=1:30"), ("", "listed[0]=a"), ("text: {a: b}",)):
        with pytest.raises(ConfigError):
            read(tmp_path, *arguments)


def test_anchors_and_interpolations_still_work(tmp_path):
    text = "text: &a 010\ncount: *a\nsection: {<<: {perhaps: no}, text: '${text}'}\nnamed: {k: '${count}'}"
    config = read(tmp_path, text)
    assert (config.text, config.count, config.section.text, config.section.perhaps) == ("010", 10, "010", "no")
    assert config.named == {"k": "10"}
    for wrong in ("listed: &a [*a]", "text: a\ntext: b", "text: [", "- a"):
        with pytest.raises(ConfigError):
            read(tmp_path, wrong)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("text: ~/a\nlisted: ['~/b', c~]\n")
    text = "base: ~/base.yaml\nnamed: {k: ~/c}"
    config = read(tmp_path, text, "section.text=~/d", "section.perhaps='~/e'")
    assert config.text == f"{tmp_path}/a" and config.listed == [f"{tmp_path}/b", "c~"]
    assert config.named == {"k": f"{tmp_path}/c"}
    assert (config.section.text, config.section.perhaps) == (f"{tmp_path}/d", f"{tmp_path}/e")
    assert merge(Schema, {}, ["~/base.yaml"], [], text="~/f").text == f"{tmp_path}/f"


def test_in_every_configuration(tmp_path):
    common = "output_dir: 2024_01\nsteps: 1\nmixed_precision: no\ndata: {dataset: 010, data_dir: 010, split: on}\n"
    (tmp_path / "run.yaml").write_text(common)
    words = ["mixed_precision=no", "data.label_column=no", "data.split=1:30"]
    for read_any in (read_config, read_classifier_config):
        config = read_any([str(tmp_path / "run.yaml"), *words])
        assert (config.output_dir, config.mixed_precision, config.data.dataset) == ("2024_01", "no", "010")
        assert (config.data.data_dir, config.data.split, config.data.label_column) == ("010", "1:30", "no")
    assert read_config([str(tmp_path / "run.yaml"), "hub_model_id=1e3", "hub_license=no"]).hub_model_id == "1e3"
    (tmp_path / "evaluation.yaml").write_text("mixed_precision: no\ndata: {dataset: 010, test_split: off}\n")
    config = read_evaluation_config(["010", str(tmp_path / "evaluation.yaml"), "output_dir=2024_01", "data.name=no"])
    assert (config.pipeline, config.output_dir, config.mixed_precision) == ("010", "2024_01", "no")
    assert (config.data.dataset, config.data.test_split, config.data.name) == ("010", "off", "no")
    assert OmegaConf.structured(config).data.name == "no"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a:\n\tb: 3", b"steps: 3\nsteps: 4\n", b"steps: {", b"- 3"])
def test_files_that_are_no_yaml_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        read_config([str(tmp_path / "broken.yaml")])
    assert "\n" not in str(refusal.value) and "broken.yaml" in str(refusal.value)


@pytest.mark.parametrize(
    "written, number, anything",
    [
        ("010", 10.0, 10),
        ("-010", -10.0, -10),
        ("1e3", 1000.0, 1000.0),
        ("1.5", 1.5, 1.5),
        ("inf", math.inf, "inf"),
        ("-.inf", -math.inf, -math.inf),
        ("1:30", None, "1:30"),
        ("2024_01", 202401.0, "2024_01"),
        ("[016, 032]", None, [16, 32]),
    ],
)
def test_numbers_are_decimal(tmp_path, written, number, anything):
    for config in (read(tmp_path, f"anything: {{x: {written}}}"), read(tmp_path, "", f"anything.x={written}")):
        assert config.anything["x"] == anything and type(config.anything["x"]) is type(anything)
    for text, words in ((f"number: {written}", []), ("", [f"number={written}"])):
        if number is not None:
            assert read(tmp_path, text, *words).number == number
        else:
            with pytest.raises(ConfigError, match="number"):
                read(tmp_path, text, *words)


@pytest.mark.parametrize("written", ["10", "2", "-1", "0.5"])
def test_numbers_are_no_booleans(tmp_path, written):
    for text, words in ((f"section: {{flag: {written}}}", []), ("", [f"section.flag={written}"])):
        with pytest.raises(ConfigError, match="neither true nor false"):
            read(tmp_path, text, *words)
    assert read(tmp_path, "section: {flag: 1}").section.flag is True


def test_refusals_name_their_key(tmp_path):
    with pytest.raises(ConfigError, match="section.flag=2: '2' is neither true nor false"):
        read(tmp_path, "", "section.flag=2")
    with pytest.raises(ConfigError, match="listed must be a list in brackets"):
        read(tmp_path, "listed: a")
    with pytest.raises(ConfigError, match="base must be the path of one configuration file, but is"):
        read(tmp_path, "base: [c.yaml]")
