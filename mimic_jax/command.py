"""What every command shares: exit codes, and one clear line for a user's mistake.

A command module defines its absl flags and a `main() -> None`, and ends with

    if __name__ == "__main__":
        command.run(main)

or, where it takes arguments without a flag, with `command.run(main, positional=("VIEW1", "VIEW2"))` and
`main(view1, view2)`; a last name that ends in … stands for one or more, and names that end in ? may be left out.

Exit code 0 is done, 2 is bad usage or input (one line on standard error, no traceback), 75 is what may work later (one
line too), 130 is an interrupt from the keyboard, anything else is a fault of the program.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging


class InputError(Exception):
    """A mistake in what the user gave. The message names the file, field or flag, and what to do about it."""

    exit_code = 2


class TryAgain(InputError):
    """No mistake: the same command may work later, as where a disk is away, or memory was short."""

    exit_code = 75  # "temporary failure" in sysexits.h


class Stopped(BaseException):
    """SIGTERM came where there was nothing to save."""


def run(main: Callable[..., None], positional: Sequence[str] = ()) -> None:
    """Parses the flags and runs `main`, turning a user's mistakes into one line and exit code 2.

    positional: names, as --help shows them, of the arguments without a flag; `main` is given their values.
    """
    app.run(
        lambda argv: _guarded(lambda: main(*argv[1:])),
        flags_parser=lambda argv: _parse_flags(argv, positional),
    )


def _parse_flags(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    for argument in argv:
        path = argument.removeprefix("--config=").partition(":")[0]  # what follows a colon is the config's own argument
        if argument.startswith("--config=") and not Path(path).is_file():
            _fail(f"--config={path}: no such file; the experiments are in configs/")
    try:
        positional = flags.FLAGS(argv)
    except SystemExit:  # absl ends --help with 1
        sys.exit(0)
    except flags.Error as error:
        _fail(f"{_flags_error(error, argv)} (--help lists the flags)")
    except (KeyError, AttributeError) as error:  # what config_flags makes of `--config.misspelt=1`
        _fail(f"{_misspelt(error, argv)}: the config has no such field")
    except Exception as error:  # a config file is the user's own Python
        _fail(f"--config: the file cannot be used: {type(error).__name__}: {one_line(error)}")
    given = positional[1:]
    open_ended = bool(names) and names[-1].endswith("…")
    needed = [name for name in names if not name.endswith("?")]
    if len(given) < len(needed):
        _fail(f"{' '.join(needed[len(given) :])} missing: give {' '.join(names)} (--help lists the flags)")
    if len(given) > len(names) and not open_ended:
        _fail(f"unexpected argument {given[len(names)]!r}: options are given as --name=value (--help lists them)")
    return positional


def _guarded(main: Callable[[], None]) -> None:
    # Orbax tells every file it writes at the level below.
    logging.set_verbosity(logging.WARNING)
    try:
        main()
    except InputError as error:
        _fail(one_line(error), error.exit_code)
    except Stopped:
        print("SIGTERM: there was nothing to save; the same command carries on")
        _end_at_once(0)
    except KeyboardInterrupt:
        print("interrupted; the same command carries on from here", file=sys.stderr)
        _end_at_once(130)


def _end_at_once(code: int) -> NoReturn:
    """Threads of pools that are being taken down would each print a traceback of their own."""
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


def _misspelt(error: BaseException, argv: Sequence[str]) -> str:
    message = error
    while isinstance(message, BaseException) and message.args:
        message = message.args[0]
    field = str(message).split("\n")[0].strip("'")
    flag = next((flag for flag in argv if field in flag.partition("=")[0].split(".")), None)
    return flag.partition("=")[0] if flag else str(message)


def _flags_error(error: flags.Error, argv: Sequence[str]) -> str:
    """What absl says, in fewer words."""
    message = str(error)
    if "Traceback" in message:  # of the user's config file; its last line is what went wrong
        config = next((flag for flag in argv if flag.startswith("--config=")), "--config")
        return f"{config}: {message.strip().splitlines()[-1]}"
    if unset := re.search(r"Flag (--\w+) must have a value other than None", message):
        return f"{unset[1]} is not set"
    if "Unknown command line flag 'config." in message and not any(flag.startswith("--config=") for flag in argv):
        return "--config is not set"
    return one_line(error)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split())


def _fail(message: str, code: int = InputError.exit_code) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
