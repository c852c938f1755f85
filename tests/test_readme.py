"""The README's cheap commands print what it says: every word, and every figure to its last digit."""

import itertools
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from analyses.commands.options.application import build_app

README = (Path(__file__).parent.parent / "README.md").read_text()
CHEAP = ("temperature --space", "maxent --space", "construct partial", "compose multiply")
ROUNDING = 1e-9  # figures below it are rounding: only that they are as small is compared
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def sessions():
    """Commands with the output printed below them, from the README's blocks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", README, flags=re.M | re.S):
        lines = block.replace("\\\n", " ").splitlines()
        starts = [i for i, line in enumerate(lines) if re.match(r"(\$ )?rhoscope ", line)]
        for i, end in itertools.pairwise([*starts, len(lines)]):
            command = lines[i].removeprefix("$ ").split("#")[0].strip()
            if command.startswith(tuple(f"rhoscope {one}" for one in CHEAP)):
                yield command, "\n".join(lines[i + 1 : end]).strip()


def call(command):
    arguments = shlex.split(command)[1:]
    result = CliRunner().invoke(build_app(), [*arguments, "--quiet"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def ulp(text):
    """One unit of the last digit that is printed."""
    digits, _, power = text.partition("e")
    return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


def differences(shown, found):
    """Words and figures in which two texts differ."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", found).split():
        return [(shown, found)]
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(found), strict=True)
    return [
        (a, b)
        for a, b in pairs
        if abs(float(a) - float(b)) > 1.01 * ulp(a) and max(abs(float(a)), abs(float(b))) > ROUNDING
    ]


def test_differences_are_seen():
    assert not differences("H = 2.61, 1e-15 left", "H = 2.60,  3e-14  left")
    assert differences("H = 2.61", "H = 2.27") == [("2.61", "2.27")]
    assert differences("lambda 14.782216", "lambda 14.782226")
    assert differences("T stable", "T unstable")
    assert differences("1e-15", "1e-3")


def test_the_readme_has_sessions():
    commands = [command for command, _ in sessions()]
    assert len(commands) >= 5
    for one in CHEAP:
        assert any(one in command for command in commands)


def test_sessions_print_what_the_readme_says(tmp_path, monkeypatch):
    """Also the sentence on the parts: H above 2 and above 4; which of many solutions they are is open."""
    monkeypatch.chdir(tmp_path)
    losses = []
    for command, shown in sessions():
        found = call(command)
        if shown:
            assert not differences(shown, found), command
        losses += [float(loss) for loss in re.findall(r"H = (\S+)", found)]
    assert "H above 2 and above 4" in " ".join(README.split())
    first, second, product = losses
    assert first > 2
    assert second > 4
    assert product < 1e-20
