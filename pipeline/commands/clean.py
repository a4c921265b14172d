"""The command `clean`.

The stage is imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pipeline.clean.rule_names import RULES
from pipeline.commands.console import Choice, Command, Number, Outcome, Settings, option_group
from pipeline.commands.options import (
    ENGINE,
    EXCLUDE,
    INCLUDE,
    JOBS,
    MAX_BAD,
    NAME,
    REBUILD,
    TEXT_FIELD,
    engine_of,
    outcome_of,
    worker_count,
)

if TYPE_CHECKING:
    from pipeline.clean.report.report import CleaningReport
    from pipeline.sources.inputs import InputFile


_BYTES_PER_WORKER = 3 << 20  # of input, which one process cleans in the time that a worker takes to start
_PROFILES = (
    *("auto", "plain", "chinese-poetry", "kanripo", "daizhige", "wikitext-lite", "org", "html", "markdown", "cbeta"),
    *("poems", "chat-log", "chat-log-text", "text", "chat", "preferences"),
)
_CLEAN_INPUT = option_group(
    "Input",
    click.option(
        "--profile",
        type=Choice(_PROFILES),
        default="auto",
        show_default=True,
        help="Format of the input; auto cleans each document as Chinese if most of its letters are Han, else as text; "
        "chat keeps the turns of conversations, or of preference pairs.",
    ),
    click.option(
        "--encoding",
        default="auto",
        show_default=True,
        metavar="ENCODING",
        help="Encoding of plain text files, e.g. gb18030; auto detects it.",
    ),
    TEXT_FIELD,
    click.option(
        "--gaiji-map",
        default="",
        metavar="FILE",
        help="Table that replaces unencoded characters such as {上休下鳥} and &KR0869;.",
    ),
    click.option("--pua-map", default="", metavar="FILE", help="Table that replaces private-use characters."),
    INCLUDE,
    EXCLUDE,
    MAX_BAD,
)
_CLEAN_RULES = option_group(
    "Cleaning",
    click.option(
        "--preset",
        type=Choice(["moirai"]),
        default="",
        help="Preset of the options below. moirai: one sentence per line, no quotes, common punctuation only.",
    ),
    click.option(
        "--unwrap/--no-unwrap",
        default=None,
        help="Join hard-wrapped lines (default: set by the profile, or where lines are clearly hard-wrapped).",
    ),
    click.option(
        "--headings",
        type=Choice(["boundary", "drop", "keep"]),
        default="boundary",
        show_default=True,
        help="Use chapter headings as boundaries, drop them, or keep them as text.",
    ),
    click.option(
        "--heading",
        multiple=True,
        metavar="REGEX",
        help="Match further chapter headings within a line, e.g. '^正文 第.+回.*' (repeatable).",
    ),
    click.option(
        "--notes",
        multiple=True,
        metavar="BRACKETS=POLICY",
        help="Policy for notes in these brackets: keep, drop, drop:WORDS or extract, e.g. （）=drop; footnotes=drop "
        "removes ①, [1] and the lines that they refer to (repeatable).",
    ),
    click.option(
        "--gaiji",
        type=Choice(["keep", "lacuna", "drop"]),
        default="lacuna",
        show_default=True,
        help="Keep unencoded characters, replace them by a lacuna (□), or drop them.",
    ),
    click.option(
        "--lacunae",
        type=Choice(["keep", "collapse", "drop-unit"]),
        default="keep",
        show_default=True,
        help="Keep lacunae (□), collapse runs of them, or drop the documents that contain them.",
    ),
    click.option(
        "--boilerplate",
        multiple=True,
        metavar="REGEX",
        help="Remove text that matches; chapter-ends matches 且听下回分解 and its variants, site-ads what websites "
        "add: addresses, notices, navigation, lines of marks (repeatable).",
    ),
    click.option(
        "--gaps",
        type=Choice(["keep", "comma", "newline", "drop"]),
        default="keep",
        show_default=True,
        help="Keep spaces between clauses of text without punctuation, make them ， or line ends, or drop them.",
    ),
    click.option(
        "--quotes",
        type=Choice(["keep", "curly", "corner", "strip"]),
        default="keep",
        show_default=True,
        help="Keep quotation marks, convert them to “” or 「」, or strip them.",
    ),
    click.option(
        "--script",
        type=Choice(["keep", "simplified", "traditional"]),
        default="keep",
        show_default=True,
        help="Convert Chinese characters with OpenCC.",
    ),
    click.option("--variants", default="", metavar="FILE", help="Table of variant characters, e.g. 爲 → 為."),
    click.option(
        "--punct",
        default="keep",
        show_default=True,
        metavar="POLICY",
        help="Policy for punctuation: keep, strip, or only:MARKS (such as only:。，！？) to keep these marks.",
    ),
    click.option(
        "--verse",
        type=Choice(["inline", "own-unit", "drop"]),
        default="inline",
        show_default=True,
        help="Keep verse within prose, put it on lines of its own, or drop it.",
    ),
    click.option(
        "--without",
        type=Choice(RULES),
        multiple=True,
        metavar="RULE",
        help=f"Switch a rule off (repeatable). Rules: {', '.join(RULES)}.",
    ),
)
_CLEAN_UNITS = option_group(
    "Documents",
    click.option(
        "--unit",
        type=Choice(["chapter", "paragraph", "sentence", "document"]),
        default="chapter",
        show_default=True,
        help="Text that becomes one document of the corpus.",
    ),
    click.option(
        "--split",
        type=Choice(["quoted", "flat"]),
        default="quoted",
        show_default=True,
        help="Split sentences outside quotes only (quoted), or at every sentence end (flat).",
    ),
    click.option(
        "--min-chars", type=int, metavar="N", default=1, show_default=True, help="Drop documents with fewer characters."
    ),
    click.option(
        "--min-han",
        type=Number(),
        metavar="FRACTION",
        help="Drop documents with a smaller fraction of Han among their letters (default: 0.5 if --profile names a "
        "Chinese one, otherwise no limit).",
    ),
    click.option(
        "--dedup",
        type=Choice(["no", "exact", "near"]),
        default="no",
        show_default=True,
        help="Drop documents equal to an earlier one (exact), or nearly so (near).",
    ),
    click.option(
        "--decontaminate",
        multiple=True,
        metavar="CORPUS",
        help="Drop documents that share passages with this validation or test corpus, file or folder: 8 or more "
        "sequences of 13 words or Chinese characters (repeatable).",
    ),
    click.option(
        "--max-bytes",
        type=int,
        metavar="N",
        default=4192,
        show_default=True,
        help="Limit the length of lines in sentences.txt, in bytes of UTF-8.",
    ),
)


@click.command(cls=Command)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@_CLEAN_INPUT
@_CLEAN_RULES
@_CLEAN_UNITS
@option_group(
    "Output",
    NAME,
    click.option("--dry-run", is_flag=True, help="Print the report without writing a corpus."),
    REBUILD,
    click.option(
        "--explain",
        type=Choice(RULES),
        default="",
        metavar="RULE",
        help="Print ten examples of a rule's changes and stop.",
    ),
    JOBS,
    ENGINE,
)
def clean(
    settings: Settings,
    inputs: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    name: str,
    dry_run: bool,
    rebuild: bool,
    explain: str,
    jobs: int,
    engine: str,
    **options: Any,
) -> Outcome:
    """Clean text into a corpus.

    INPUT is a downloaded source, a file or a folder: text, Markdown, HTML, EPUB, Word, subtitles, JSON, JSON lines,
    CSV, Parquet or Arrow, also as .gz, .zst, .bz2 or .xz, and in .zip or .tar archives. Files of a folder without text
    are left out and counted. The report counts every change and every rejected document.

    \b
    Examples:
      inkstone clean BOOK.txt --name book
      inkstone clean shuihu --notes （）=drop --dry-run
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy, which are started and never used
    from pipeline.clean import stage
    from pipeline.clean.options import CleanOptions
    from pipeline.sources.inputs import explain_exclude, gather_inputs
    from pipeline.sources.walk import as_records
    from pipeline.store.manifest import check_name, name_from_path

    clean_options, progress = CleanOptions(**options), settings.progress
    gathered = gather_inputs(
        *(settings.root, inputs, progress),
        corpora=False,
        include=include,
        exclude=exclude,
        text_fields=clean_options.record_fields,
    )
    files = gathered.files
    extra: dict[str, Any] = {"left_out": as_records(gathered.left_out)}
    with explain_exclude([file.path for file in files], inputs):
        if explain:
            return _examples_outcome(stage.explain(files, clean_options, explain), explain, extra)
        open_engine, jobs = engine_of(engine, jobs), jobs or _useful_workers(files)
        held_out = stage.held_out_files(settings.root, clean_options, progress)
        if dry_run:
            report = stage.build_report(files, clean_options, progress, jobs=jobs, held_out=held_out)
            return _report_outcome(report, extra)
        name = check_name(name or name_from_path(inputs[0]))
        built = stage.clean(
            *(settings.root, name, files, clean_options, progress),
            jobs=jobs,
            rebuild=rebuild,
            held_out=held_out,
            open_engine=open_engine,
        )
    outcome = outcome_of(built, ("documents", "characters", "headings"), **extra)
    outcome.lines = [outcome.lines[0], *stage.report_table(built.artifact), _next(name, is_chat=clean_options.is_chat)]
    return outcome


def _next(name: str, *, is_chat: bool) -> str:
    return f"next: inkstone {f'tokenize {name} --tokenizer RUN' if is_chat else f'train-tokenizer {name}'}"


def _useful_workers(inputs: Sequence[InputFile]) -> int:
    """Return the number of processes that clean the inputs in the least time."""
    return min(worker_count(0), 1 + sum(entry.stamp.size for entry in inputs) // _BYTES_PER_WORKER)


def _examples_outcome(examples: list[tuple[str, str]], rule: str, extra: dict[str, Any]) -> Outcome:
    """Return the outcome of `clean --explain`: changes of a rule, each before and after."""
    lines = [line for before, after in examples for line in (f"- {before}", f"+ {after}", "")]
    records = [{"before": before, "after": after} for before, after in examples]
    lines = lines or [f"{rule} changes nothing here"]
    return Outcome("unchanged", extra={"samples": records, **extra}, lines=lines, always=True)


def _report_outcome(report: CleaningReport, extra: dict[str, Any]) -> Outcome:
    """Return the outcome of `clean --dry-run`: the report, and the source files that were edited."""
    from pipeline.clean import stage
    from pipeline.clean.report import render
    from pipeline.store.code import built_with, state_of

    lines = [*render.table(report), built_with(state_of(stage.CODE).edited)]
    extra["report"] = render.to_json(report)
    return Outcome("unchanged", extra=extra, lines=[*filter(None, lines)], always=True)
