"""Settings in a TOML file: every value that is none is named."""

import pytest

from minibule.errors import InputError
from minibule.runs.settings import resolve, to_toml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = 1" + "0" * 400, "expected less than 2\\^63"),
        ("lr = 1" + "0" * 400, "lr = .*expected a number of at least 0"),
        ("steps = " + "9" * 5000, "not a TOML file"),
        ("lr = nan", "lr = nan"),
        ("lr = inf", "lr = inf"),
        ("preset = ['tiny']", "preset \\['tiny'\\] in .*: unknown"),
        ("export = [['hf']]", "export = .*expected some of"),
        ("lora_targets = [{}]", "lora_targets = .*expected some of"),
        ("max-length = 9\nmax_length = 8", "max-length stands there twice"),
        ("lr = " + "[" * 100_000, "not a TOML file"),
        ("[lr]\na = 1", "lr = "),
        ("\xff", "not a TOML file"),
    ],
)
def test_settings_that_cannot_be_used(text, says, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=says) as error:
        resolve({"config": str(path)})
    assert len(str(error.value)) < 2000


def test_every_text_is_written_so_that_it_is_read_back(tmp_path):
    path = tmp_path / "config.toml"
    config = resolve({"model": "m", "probe": 'a "b" \\ \x00 \x7f \u2028 \U0001f642 \n\t'})
    path.write_text(to_toml(config), encoding="utf-8")
    assert resolve({"config": str(path)}) == config
