"""The counts of tokens over all their units, and the characters of the text that are not in the vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.errors import BadData, TooManyRejects
from pipeline.readers.detection.common_characters import SIMPLIFIED, TRADITIONAL
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.terminal import counted
from pipeline.sources.inputs import InputFile
from pipeline.store.artifact import StageOutput
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.overlap import Overlap
from pipeline.tokens.resume import UnitDifferences, UnitRecord
from pipeline.tokens.segments import SPLITS
from pipeline.tokens.split import SplitRule, warning_of

_WARNED, _REFUSED = 0.001, 0.05  # fractions of unknown characters
_SHOWN_REWRITES = 10
_SHOWN_UNKNOWN, _SAMPLE = 8, 1_000_000  # unknown characters in a warning; characters of text that are searched for them
_SCRIPT_RATIO = 10  # a vocabulary with so many characters of one script for each of the other is of that script


def content_of(
    units: Sequence[UnitRecord],
    sources: Sequence[tuple[int, InputFile, Any]],
    tokenizer: Tokenizer,
    dtype: str,
    max_bad: float,
    rule: SplitRule | None,
    overlap: Overlap | None,
) -> StageOutput:
    """Return the counts over all units, the closed ledger, and the hashes computed while writing."""
    ledger, split_counts = Ledger(), _split_counts(units)
    sets: dict[str, int] = {}
    differences = UnitDifferences({}, {})
    for record in units:
        ledger.add(record.ledger)
        if record.differences is not msgspec.UNSET:
            differences.add(record.differences)
        for name, count in record.sets.items():
            sets[name] = sets.get(name, 0) + count
    closed = _close(ledger, units, sources, max_bad)
    for split in SPLITS if rule or any(record.split == "val" for record in units) else SPLITS[:1]:
        if not split_counts[f"{split}_tokens"]:
            raise _empty_split(split, ledger)
    if rule and rule.mode == "stretch":
        split_counts |= {
            f"{split}_stretches": sum(record.stretches.get(split, 0) for record in units) for split in SPLITS
        }
    if overlap:
        split_counts["overlap_documents"] = overlap.count
    counts = {
        "tokens": split_counts["train_tokens"] + split_counts["val_tokens"],
        "documents": ledger.documents.out,
        "input_bytes": sum(record.input_bytes for record in units),
        "units": len(units),
        "longest_document": max(record.longest for record in units),
        "sets": dict(sorted(sets.items())),
        "dtype": dtype,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "encoder": tokenizer.encoder,
        "compared": sum(record.compared for record in units),
        **split_counts,
    }
    unknown = sum(differences.unknown.values())
    if tokenizer.unknown_id is not None or unknown:
        counts["unknown_characters"] = unknown
        closed["characters"] |= {"unknown": unknown} if unknown else {}
    if differences.rewritten or differences.changed:
        commonest = _ranked(differences.rewritten)[:_SHOWN_REWRITES]
        counts["rewritten_characters"] = sum(differences.rewritten.values())
        counts |= {"rewrites": dict(commonest), "changed_documents": differences.changed}
    return StageOutput(counts, closed, hashed=[file for record in units for file in record.files])


def _split_counts(units: Sequence[UnitRecord]) -> dict[str, int]:
    """Return the tokens, documents and characters of each split, and the tokens that have a loss if some are masked."""
    counts = {f"{split}_{unit}": 0 for split in SPLITS for unit in ("tokens", "documents", "characters")}
    for record in units:
        for split in SPLITS:
            counts[f"{split}_tokens"] += record.tokens.get(split, 0)
            counts[f"{split}_documents"] += record.documents.get(split, 0)
            counts[f"{split}_characters"] += record.characters.get(split, 0)
        for split, losses in record.losses.items() if record.losses is not msgspec.UNSET else ():
            name = f"{split}_loss_tokens"
            counts[name] = counts.get(name, 0) + losses
    return counts


def _close(
    ledger: Ledger, units: Sequence[UnitRecord], sources: Sequence[tuple[int, InputFile, Any]], max_bad: float
) -> dict[str, Any]:
    """Close the ledger of all units. Its error for too many bad documents names the first file with one."""
    try:
        return ledger.close(max_bad=max_bad)
    except TooManyRejects as error:
        first = next(record.file for record in units if record.ledger.documents.bad)
        raise TooManyRejects(f"{sources[first][1].path}: {error.message}", hint=error.hint) from None


def _empty_split(split: str, ledger: Ledger) -> BadData:
    documents, dropped = ledger.documents.out, ledger.documents.dropped
    summary = f"the {split} split is empty: {counted(documents, 'documents')}"
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        return BadData(f"{summary}; dropped: {reasons}", hint="relax the filters, or check the inputs")
    return BadData(summary, hint=f"name {'more to train on' if split == 'train' else 'another corpus with --val'}")


def has_some_unknown(counts: Mapping[str, Any]) -> bool:
    """Return True if more than 0.1 % of the characters are unknown, enough for a warning."""
    return unknown_share(counts) > _WARNED


def has_many_unknown(counts: Mapping[str, Any]) -> bool:
    """Return True if more than 5 % of the characters are unknown."""
    return unknown_share(counts) > _REFUSED


def require_known(counts: Mapping[str, Any], tokenizer: Tokenizer, *, allow_unknown: bool) -> None:
    """Raise BadData if more than 5 % of the characters are unknown, unless `allow_unknown`."""
    if has_many_unknown(counts) and not allow_unknown:
        hint = "`train-tokenizer` trains one that does; --allow-unknown accepts it"
        if script := script_of(tokenizer):
            hint = f"its vocabulary is {script} Chinese, to which `clean --script {script}` converts; {hint}"
        raise BadData(
            f"{describe_unknown(counts)}{_examples(counts)}, more than {_REFUSED:.0%}: "
            f"{counts['tokenizer']} does not fit this text",
            hint=hint,
        )


def commonest_unknown(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, int]:
    """Return the frequencies of the commonest unknown characters at the beginning of the texts."""
    frequencies, size = Counter[str](), 0
    for text in texts:
        sample = text[: _SAMPLE - size]
        unknown = {*tokenizer.unknown_characters(sample)}
        frequencies.update(character for character in sample if character in unknown)
        size += len(sample)
        if size >= _SAMPLE:
            break
    return dict(_ranked(frequencies)[:_SHOWN_UNKNOWN])


def _examples(counts: Mapping[str, Any]) -> str:
    examples = ", ".join(character for character, _ in _ranked(counts.get("commonest_unknown", {})))
    return f", such as {examples}" if examples else ""


def _ranked(frequencies: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))


def script_of(tokenizer: Tokenizer) -> str:
    """Return "simplified" or "traditional" if the vocabulary has mostly characters of one Chinese script, else ""."""
    simplified, traditional = (
        len(characters) - len(tokenizer.unknown_characters(characters)) for characters in (SIMPLIFIED, TRADITIONAL)
    )
    if max(simplified, traditional) < _SCRIPT_RATIO * max(min(simplified, traditional), 1):
        return ""
    return "simplified" if simplified > traditional else "traditional"


def warnings_of(counts: Mapping[str, Any], rule: SplitRule | None = None) -> list[str]:
    """Return the warnings about tokens: little text is held out by the `rule`, or ids do not decode to the text."""
    lines = [warning] if (warning := warning_of(rule, counts)) else []
    if has_some_unknown(counts):
        lines.append(f"warning: {describe_unknown(counts)}{_examples(counts)}: they are not in {counts['tokenizer']}")
    if rewrites := counts.get("rewrites"):
        shown = ", ".join(f"{rewrite} ({count:,})" for rewrite, count in rewrites.items())
        characters = counted(counts["rewritten_characters"], "characters")
        lines.append(f"warning: {counts['tokenizer']} rewrites {characters}: {shown}")
    elif counts.get("changed_documents") and not counts.get("unknown_characters"):
        changed, documents = counts["changed_documents"], counts["val_documents"]
        lines.append(f"warning: {changed:,} of {documents:,} validation documents decode to another text")
    return lines


def describe_unknown(counts: Mapping[str, Any]) -> str:
    """Return "12 of 3,000 characters (0.40 %) are unknown"."""
    share, unknown = unknown_share(counts), counts.get("unknown_characters", 0)
    return f"{unknown:,} of {_characters(counts):,} characters ({100 * share:.2f} %) are unknown"


def unknown_share(counts: Mapping[str, Any]) -> float:
    """Return the fraction of the characters in tokens that are not in the vocabulary."""
    return float(counts.get("unknown_characters", 0) / max(_characters(counts), 1))


def _characters(counts: Mapping[str, Any]) -> int:
    return sum(counts.get(f"{split}_characters", 0) for split in SPLITS)
