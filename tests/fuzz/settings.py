"""The fuzz target of the settings: any file and environment give settings, or a ``SettingsError`` that says where."""

import os
import random
import re
import tempfile
from pathlib import Path
from unittest import mock

import deploy
from pipeline.errors import SettingsError
from pipeline.settings import Settings, load_settings, unknown_variables
from pipeline.settings.variables import SettingPath, setting_paths, variable_name
from tests.fuzz.mutation import mutate

PASSWORD = "pass-word-of-the-fuzzer"
_PATHS: list[SettingPath] = list(setting_paths(Settings))
_FILES = [
    (Path(deploy.__path__[0]) / "beijing.toml").read_bytes(),
    b'horizon_steps = 5\nfeatures = ["a", "b"]\ntargets = ["a"]\n[kafka]\nsasl_password = "x"\npartitions = 3\n',
    b'quantiles = [0.1, 0.5]\n[kafka.topics]\nreadings = "r"\n[schedules.ingest]\ncron = "* * * * *"\n',
    "\ufeffcadence_s = 60.5\r\nhome = 'x'\r\n[training]\r\nepochs = 3\r\n[gate]\r\nautomatic = true\r\n".encode(),
]
_TEXTS = [
    *("", " ", "5", "-1", "0.5", "nan", "inf", "1e400", "true", "no", "null", "a,b", "a,,b", ",", '"a"', "0.1,0.5,0.9"),
    *(
        '["a", "b"]',
        "[0.5]",
        "[",
        "[[[]]]",
        "{}",
        '{"partitions": 3}',
        '{"a": {"b": null}}',
        '["a\\\\ud800"]',
        "9" * 5_000,
    ),
    *("[" * 9_000, '{"":' * 3_000, "\udcff", "\ufeffa", "a\nb", "\x1b[2J", "/dev/null", "/dev/null/x", "é" * 600),
    *("SASL_SSL", "latest", "full", "* * * * *", "b:9,c:9", "[NaN]", "[1e999]", '[{"x": [1]}]'),
]


def settings(chance: random.Random) -> None:
    """Any file and environment give settings, or an error that names the settings at fault and shows no password."""
    environment = dict(_variable(chance) for _ in range(chance.choice((0, 1, 1, 2, 5))))
    if chance.random() < 0.5:
        environment["STREAMGRU_KAFKA__SASL_PASSWORD"] = PASSWORD
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment):
        path = Path(folder) / "settings.toml"
        path.write_bytes(_content(chance))
        try:
            unknown_variables()
            found = load_settings(chance.choice((path, path, None)))
        except SettingsError as error:
            _check_message(str(error))
            return
    # Settings that are accepted can be used by the rest of the program.
    assert found.fingerprint
    assert found.season >= 1
    assert found.grace.wait_us >= 0
    assert found.cadence_us * found.horizon_steps < 2**63


def _content(chance: random.Random) -> bytes:
    original = chance.choice(_FILES)
    match chance.randrange(4):
        case 0:
            return original
        case 1:
            return original.decode("utf-8-sig").encode(chance.choice(("utf-16", "utf-32", "utf-8-sig")))
        case _:
            return mutate(original, _FILES, chance)


def _variable(chance: random.Random) -> tuple[str, str]:
    name = variable_name(chance.choice(_PATHS))
    match chance.randrange(8):
        case 0:
            at = chance.randrange(len("STREAMGRU_"), len(name))
            name = name[:at] + chance.choice(("", "_", "__", "X", "é", "\n")) + name[at + 1 :]
        case 1:
            name += chance.choice(("__", "__0", "__x__y"))
        case 2:
            name = name.lower()
    return name, chance.choice(_TEXTS)


def _check_message(message: str) -> None:
    assert PASSWORD not in message
    first, *lines = message.split("\n")
    if not lines:
        assert first.startswith("settings file "), message
        return
    assert first.startswith("invalid settings in ")
    names = "|".join([*(re.escape(path[0]) for path in _PATHS), "STREAMGRU_", "settings: ", "and [0-9]+ more"])
    for line in lines:
        assert re.match(rf"  ({names})", line, re.IGNORECASE) or line.endswith("is not a setting") or "?" in line, (
            message
        )
