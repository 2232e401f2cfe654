"""A dataclass as a command: flags, help, one line for a mistake, exit status."""

import dataclasses
import math
import os
import signal
import sys
from typing import Literal

import pytest

from sasnet_jax import cli
from sasnet_jax.cli import setting


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    output: str = setting("", help="folder to write", topic="data", required=True)
    store: tuple[str, ...] = setting((), help="a store; repeatable", topic="data")
    size: int = setting(5, help="reviews in a set", topic="training")
    rate: float = setting(0.5, help="learning rate", topic="training", extra=True)
    match: bool = setting(False, help="also see the match", topic="training")
    seconds: float | None = setting(None, help="at most", topic="training")
    side: Literal["user", "business"] = setting("user", help="whose", topic="training")


def _parse(*flags: str) -> _Config:
    return cli.parse(_Config, ["command", "--output=O", *flags], "What it does.")


def test_a_setting_that_is_not_given_has_its_default():
    assert _parse() == _Config(output="O")


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (("--size=7",), "size", 7),
        (("--size", "7"), "size", 7),
        (("--rate=1e-3",), "rate", 0.001),
        (("--match",), "match", True),
        (("--match=true",), "match", True),
        (("--match", "--nomatch"), "match", False),
        (("--seconds=2.5",), "seconds", 2.5),
        (("--side=business",), "side", "business"),
        (("--store=a", "--store=b"), "store", ("a", "b")),
        (("--size=7", "--size=8"), "size", 8),
    ],
    ids=str,
)
def test_a_field_is_a_flag_of_its_type(flags, name, value):
    parsed = getattr(_parse(*flags), name)
    assert parsed == value and type(parsed) is type(value)


def test_a_flagfile_holds_flags_and_later_flags_win(tmp_path):
    path = tmp_path / "base.flags"
    path.write_text("# A comment.\n--size=7\n--match\n")
    assert _parse(f"--flagfile={path}") == _Config(output="O", size=7, match=True)
    assert _parse(f"--flagfile={path}", "--size=8").size == 8


def _exit(capsys, monkeypatch, flags, run=lambda config: None):
    """Status, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["command", *flags])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        cli.main(_Config, run, "What it does.")
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        (b"--size=7\xff\n", "not UTF-8"),
        (b"--flagfile=SELF\n", "includes itself"),
        (b"#" * (2 << 20), "no flagfile"),
        (None, "is not a file"),
    ],
    ids=["not UTF-8", "recursive", "too long", "a pipe"],
)
def test_a_flagfile_that_absl_would_trip_over_is_one_line(
    capsys, monkeypatch, tmp_path, text, mention
):
    path = tmp_path / "base.flags"
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text.replace(b"SELF", bytes(path)))
    for flags in ([f"--flagfile={path}"], ["--flagfile", str(path)]):
        status, out, err = _exit(capsys, monkeypatch, ["--output=O", *flags])
        assert (status, out) == (2, "")
        assert err.count("\n") == 1 and mention in err and str(path) in err


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Bounded:
    epochs: int = setting(1, help="epochs", topic="training", minimum=1, below=100)
    dropout: float = setting(0.5, help="dropout", topic="training", minimum=0, maximum=0.99)
    rate: float | None = setting(None, help="learning rate", topic="training", above=0)
    store: tuple[str, ...] = setting((), help="a store", topic="data")

    def __post_init__(self):
        cli.check(self)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1},
        {"epochs": 99},
        {"dropout": 0},
        {"dropout": 0.99},
        {"rate": None},
        {"rate": 1e-9},
        {"store": ("a",)},
    ],
    ids=str,
)
def test_what_is_within_bounds_passes(settings):
    (name,) = settings
    assert getattr(_Bounded(**settings), name) == settings[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--epochs=0 must be at least 1 and below 100"),
        ({"epochs": 100}, "--epochs=100 must be at least 1 and below 100"),
        ({"epochs": True}, "--epochs=True must be int"),
        ({"epochs": 1.5}, "--epochs=1.5 must be int"),
        ({"dropout": -0.1}, "--dropout=-0.1 must be at least 0 and at most 0.99"),
        ({"dropout": 1.0}, "--dropout=1.0 must be at least 0 and at most 0.99"),
        ({"dropout": math.nan}, "--dropout=nan must be finite"),
        ({"rate": 0.0}, "--rate=0.0 must be above 0"),
        ({"rate": math.inf}, "--rate=inf must be finite"),
        ({"rate": "fast"}, "--rate='fast' must be float or None"),
        ({"store": ("a", 1)}, "--store=('a', 1) must be a tuple of texts"),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_or_of_another_type_is_named(settings, message):
    with pytest.raises(cli.UserError) as error:
        _Bounded(**settings)
    assert str(error.value) == message


def test_progress_into_a_pipe_is_a_plain_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with cli.ProgressBar(total=100, desc="training", unit="epoch") as bar:
        for _ in range(100):
            now[0] += 0.5
            bar.update()
            bar.set_postfix_str("loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0].split()[-1] for line in lines] == ["20", "40", "60", "80", "100"]
    assert all("training" in line and "\r" not in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "mention"),
    [
        (["--output=O", "--color=red"], "color"),
        (["--output=O", "--size=many"], "size"),
        (["--output=O", "--rate=fast"], "rate"),
        (["--output=O", "--side=town"], "side"),
        (["--output=O", "--flagfile=/nowhere"], "/nowhere"),
        (["--output=O", "extra"], "extra"),
        ([], "--output is required"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_meant_are_one_line_and_status_2(capsys, monkeypatch, flags, mention):
    status, out, err = _exit(capsys, monkeypatch, flags, run=lambda config: pytest.fail("ran"))
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and mention in err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (cli.UserError("the store is\nof another corpus"), 2, "the store is of another corpus"),
        (FileNotFoundError(2, "No such file or directory", "a.npy"), 2, "a.npy"),
        (OSError(28, "No space left on device", "b.npy"), 2, "No space left on device: b.npy"),
        (cli.Preempted("saved at step 3"), 75, "saved at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_a_command_decides_its_status(capsys, monkeypatch, error, status, said):
    def run(config):
        raise error

    found, _, err = _exit(capsys, monkeypatch, ["--output=O"], run)
    assert found == status
    assert said in err and err.count("\n") == 1


def test_any_other_error_is_ours_and_keeps_its_traceback(capsys, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        _exit(capsys, monkeypatch, ["--output=O"], lambda config: 1 // 0)


def test_sigterm_unwinds_the_command(capsys, monkeypatch):
    unwound = []

    def run(config):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            unwound.append(config.output)

    status, *_ = _exit(capsys, monkeypatch, ["--output=O"], run)
    assert (status, unwound) == (128 + signal.SIGTERM, ["O"])


@pytest.mark.parametrize(("flag", "shows_extra"), [("--help", False), ("--helpfull", True)])
def test_help_tells_each_setting_with_its_topic_default_and_choices(
    capsys, monkeypatch, flag, shows_extra
):
    status, out, err = _exit(capsys, monkeypatch, [flag], run=lambda config: pytest.fail("ran"))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "What it does." and lines.index("data:") < lines.index("training:")

    def line_of(name):
        return next(line for line in lines if line.split()[:1] == [f"--{name}"])

    assert "(required)" in line_of("output")
    assert "reviews in a set" in line_of("size") and "[5]" in line_of("size")
    assert "user | business" in line_of("side")
    assert ("--rate" in out) == shows_extra
