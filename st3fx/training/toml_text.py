"""Settings as TOML: ``tomllib`` reads, this writes. Each setting has its help as a comment."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from st3fx.errors import TrainError
from st3fx.training.settings import SECTIONS, Settings


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values in a TOML file; tables are only for the reader's eye and are merged.

    Raises:
        TrainError: When there is no such file or it is not TOML.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainError(f"no settings file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise TrainError(f"{path} is not TOML: {error}") from error
    merged: dict[str, Any] = {}
    for key, value in data.items():
        merged |= value if isinstance(value, dict) else {key: value}
    return merged


def to_toml(settings: Settings) -> str:
    """All settings that have a value, by section, each under a comment that says what it is."""
    lines = ["# Written by st3fx train. Read it back with --config, or go on with --resume."]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for field in dataclasses.fields(Settings):
            value = getattr(settings, field.name)
            if field.metadata["section"] != section:
                continue
            lines.append(f"# {field.metadata['help']}")
            # TOML has no null: what is not set is shown in a comment.
            if value is None:
                lines.append(f"# {field.name} = (not set)")
            else:
                lines.append(f"{field.name} = {_literal(value)}")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, float):
        # TOML wants a digit on both sides of the point; repr gives that, but for 1e-05.
        mantissa, mark, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{mark}{exponent}"
    # JSON's strings, numbers and booleans are TOML's too (the DEL character apart).
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
