"""Generate docs/cli-reference.md from the commands: `make docs`. tests/test_docs.py fails when it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "cli-reference.md"
_WIDTH = 100  # columns
_HEAD = """# CLI reference

Generated from the commands by `make docs`; do not edit. For exit codes see section 4 of
[reliability](design/reliability.md).
"""


def render() -> str:
    """Return the help of the program and of each of its commands as Markdown."""
    sys.path.insert(0, str(ROOT))
    from cli import cli

    sections = [("inkstone", cli), *((f"inkstone {name}", command) for name, command in cli.commands.items())]
    return _HEAD + "".join(f"\n## {title}\n\n```\n{_help(title, command)}\n```\n" for title, command in sections)


def _help(title: str, command: click.Command) -> str:
    # The names are those of the program's context settings, which commands inherit from it.
    names = ["-h", "--help"]
    context = click.Context(
        command, info_name=title, terminal_width=_WIDTH, max_content_width=_WIDTH, help_option_names=names
    )
    return command.get_help(context).rstrip()


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
