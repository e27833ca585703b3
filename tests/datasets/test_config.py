"""The file curate.toml: found, read, added to, and refused where it is damaged."""

from pathlib import Path

import pytest
from curate.datasets.config import Config, add_dataset, add_model, load_config
from curate.datasets.spec import find_dataset
from curate.errors import SpecError


def test_the_nearest_toml_at_or_above_the_working_folder_is_taken(tmp_path, monkeypatch):
    below = tmp_path / "a" / "b" / "c"
    below.mkdir(parents=True)
    (tmp_path / "curate.toml").write_text('[datasets.far]\ntrain = "x.tar"\n')
    (tmp_path / "a" / "curate.toml").write_text('[datasets.near]\ntrain = "x.tar"\n')
    monkeypatch.chdir(below)
    config = load_config()
    assert config.path == tmp_path / "a" / "curate.toml"
    assert set(config.datasets) == {"near"}


def test_without_a_toml_the_config_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("curate.datasets.config.CONFIG_NAME", "no-such-name.toml")
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config(None, {}, {})


def test_adding_an_entry_keeps_comments_and_everything_else(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text(
        '# my data\n[datasets.cats]  # the good ones\ntrain = "c.tar"\n\n[models.small]\narchitecture = "resnet18"\n'
    )
    add_dataset(path, "dogs", {"train": "d.tar", "classes": ("a", "b")})
    add_model(path, "large", {"architecture": "resnet50"})
    text = path.read_text()
    assert "# my data" in text
    assert "# the good ones" in text
    config = load_config(path)
    assert set(config.datasets) == {"cats", "dogs"}
    assert set(config.models) == {"small", "large"}
    assert find_dataset("dogs", config).classes == ("a", "b")
    add_dataset(path, "dogs", {"train": "new.tar"})
    assert load_config(path).datasets["dogs"] == {"train": "new.tar"}
    assert path.read_text().count("[datasets.dogs]") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["curate.toml"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[datasets.cats]\ntrain = "c.t', "not valid TOML"),
        (b"\xff\xfe[datasets]", "not valid TOML"),
        (b'datasets = "cats"\n', r"\[datasets\] must hold tables"),
        (b"[models]\nsmall = 3\n", r"\[models\] must hold tables"),
    ],
)
def test_a_toml_that_cannot_be_used_is_named(tmp_path, content, told):
    path = tmp_path / "curate.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=told) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_toml_that_was_named_and_is_not_there():
    with pytest.raises(SpecError, match=r"nowhere\.toml: no such file"):
        load_config(Path("nowhere.toml"))


def test_an_entry_is_never_added_to_a_broken_toml(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text('[datasets.cats]\ntrain = "c.t')
    with pytest.raises(SpecError, match="not valid TOML"):
        add_dataset(path, "dogs", {"train": "d.tar"})
    assert path.read_text() == '[datasets.cats]\ntrain = "c.t'


@pytest.mark.parametrize(
    "content",
    [b'\xef\xbb\xbf[datasets.cats]\ntrain = "c.tar"\n', b'[datasets.cats]\r\ntrain = "c.tar"\r\n'],
)
def test_a_toml_as_editors_leave_it_is_read_and_added_to(tmp_path, content):
    path = tmp_path / "curate.toml"
    path.write_bytes(content)
    assert load_config(path).datasets == {"cats": {"train": "c.tar"}}
    add_dataset(path, "dogs", {"train": "d.tar"})
    assert set(load_config(path).datasets) == {"cats", "dogs"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[dataset.d]\ntrain = "a.tar"\n', r"unknown table 'dataset'; did you mean 'datasets'\?"),
        ('[model.m]\narchitecture = "x"\n', r"unknown table 'model'; did you mean 'models'\?"),
        ('[Datasets.d]\ntrain = "a.tar"\n', r"unknown table 'Datasets'; did you mean 'datasets'\?"),
        ('train = "a.tar"\n', r"unknown key 'train'; known are \[datasets.NAME\] and \[models.NAME\]"),
        ("[[datasets]]\n", r"\[datasets\] must hold tables"),
    ],
)
def test_what_nobody_would_read_is_an_error_with_the_nearest_known_word(tmp_path, content, told):
    path = tmp_path / "curate.toml"
    path.write_text(content)
    with pytest.raises(SpecError, match=told) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_toml_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"cannot be read \(Is a directory\)"):
        load_config(tmp_path)
    (tmp_path / "curate.toml").write_bytes("[datasets.d]".encode("utf-16"))
    with pytest.raises(SpecError, match=r"not valid TOML: .*; save it as UTF-8"):
        load_config(tmp_path / "curate.toml")
