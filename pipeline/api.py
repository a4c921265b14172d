"""Python API of the pipeline: run the text stages and load what they publish.

Every function works on an artifacts folder, `root`: by default $INKSTONE_ARTIFACTS, or `artifacts` below the current
folder. A stage that already published the same result returns it unchanged. Messages go to the standard logger
"pipeline". Errors are subclasses of `pipeline.errors.InkstoneError`. Examples are in docs/python-api.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.readers import compression, corpora, jsonl
from pipeline.runtime.progress import Progress
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import check_name
from pipeline.tokenizers import Tokenizer, loading
from pipeline.tokens import store
from pipeline.tokens.store import TokenStore

__all__ = ["CorpusDocument", "clean", "load_corpus", "load_tokenizer", "load_tokens", "tokenize", "train_tokenizer"]


class CorpusDocument(msgspec.Struct, frozen=True):
    """One document of a corpus. `source` is its file or URL, `meta` a JSON value or None.

    A conversation has `messages`, a preference pair `chosen` and `rejected`: each a list of "role" and "content".
    """

    text: str
    title: str = ""
    source: str = ""
    meta: Any = None
    messages: list[dict[str, str]] = []
    chosen: list[dict[str, str]] = []
    rejected: list[dict[str, str]] = []


def artifacts_folder(root: str | Path | None = None) -> Path:
    """Return `root`, or the default artifacts folder."""
    return Path(root or os.environ.get("INKSTONE_ARTIFACTS") or "artifacts")


def load_corpus(name: str, root: str | Path | None = None) -> Iterator[CorpusDocument]:
    """Iterate over the documents of a corpus, in order. Raises InputMissing if there is none of that name."""
    corpus = artifact.find(artifacts_folder(root), "corpora", name)
    return (
        _decode_document(line)
        for path in corpora.document_files(corpus)
        for _, line, _ in jsonl.split_lines(compression.read_blocks(path))
    )


def _decode_document(line: bytes) -> CorpusDocument:
    document = msgspec.json.decode(line, type=CorpusDocument)
    return msgspec.structs.replace(document, meta=jsonl.unpack_meta(document.meta))


def load_tokenizer(name: str, root: str | Path | None = None, *, end_of_text: str = "") -> Tokenizer:
    """Open a trained tokenizer, an encoding of tiktoken such as "r50k_base", or a file.

    A file is a SentencePiece `.model`, or a Hugging Face `tokenizer.json` or its folder. `end_of_text` names the token
    that ends a text if the files of a `tokenizer.json` do not.
    """
    return loading.find(artifacts_folder(root), name, end_of_text=end_of_text)[0]


def load_tokens(name: str, root: str | Path | None = None) -> TokenStore:
    """Open token arrays: `.train` and `.val` (read with `.read(start, stop)` -> int64 ids), and `.tokenizer`."""
    return store.open_store(artifact.find(artifacts_folder(root), "tokens", name))


def clean(
    inputs: Sequence[str | Path],
    name: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    engine: str = "local",
    root: str | Path | None = None,
    **options: Any,
) -> Artifact:
    """Clean files, folders or downloaded sources into the corpus `name`.

    The patterns `include` and `exclude` choose files of folders. `engine` is as in `tokenize`. The other `options` are
    those of the command, with underscores: `unit="paragraph"`, `script="simplified"`, `min_chars=10`.
    """
    from pipeline.clean import stage
    from pipeline.clean.options import CleanOptions
    from pipeline.runtime.engines import engine_named
    from pipeline.sources.inputs import gather_inputs

    folder = artifacts_folder(root)
    references = [str(reference) for reference in inputs]
    settings, open_engine = CleanOptions(**options), engine_named(engine, 1)
    gathered = gather_inputs(
        folder,
        references,
        Progress(),
        corpora=False,
        include=include,
        exclude=exclude,
        text_fields=settings.record_fields,
    )
    held_out = stage.held_out_files(folder, settings)
    built = stage.clean(
        folder, check_name(name), gathered.files, settings, Progress(), held_out=held_out, open_engine=open_engine
    )
    return built.artifact


def train_tokenizer(
    corpus: str | Sequence[str],
    name: str = "",
    *,
    kind: str = "bpe",
    vocab_size: int | str | None = None,
    root: str | Path | None = None,
) -> Tokenizer:
    """Train a tokenizer ("bpe", "unigram", "char" or "bbpe") on one or more corpora and open it.

    `name` is by default that of the first corpus. `vocab_size` None or "auto" takes the size that the report of the
    corpus advises, or the largest that the text allows; for "char", it keeps all characters of the corpus.
    """
    from pipeline.tokenizers import stage

    folder = artifacts_folder(root)
    corpora = [corpus] if isinstance(corpus, str) else corpus
    name = check_name(name or corpora[0].split("/")[0])
    texts = stage.find_sentences(folder, corpora)
    built = stage.train(folder, name, texts, kind, vocab_size, progress=Progress())
    return loading.open_folder(built.artifact.path)


def tokenize(
    corpora: Sequence[str | Path],
    name: str,
    *,
    tokenizer: str = "",
    end_of_text: str = "",
    val: Sequence[str] = (),
    layout: str = "memmap",
    jobs: int = 1,
    engine: str = "local",
    root: str | Path | None = None,
    **options: Any,
) -> TokenStore:
    """Tokenize corpora, sources or files into token arrays and open them.

    `tokenizer` and `end_of_text` are as in `load_tokenizer`; the default is the trained tokenizer `name`. `val` names
    corpora to validate on; `layout` is "memmap", "hdf5" or "both". `options` are those of the command, such as
    `val_fraction=0.1`. The `engine` "ray" or "ray:HOST:PORT" encodes files on other machines, with `jobs` cores each.
    With `jobs` above 1 the call starts worker processes, so a script needs the guard `if __name__ == "__main__":`.
    """
    from pipeline.runtime.engines import engine_named
    from pipeline.tokens import stage
    from pipeline.tokens.options import TokenizeOptions

    folder = artifacts_folder(root)
    settings, open_engine = TokenizeOptions(layout, **options), engine_named(engine, jobs)
    references = [str(corpus) for corpus in corpora]
    inputs = stage.gather_inputs(
        folder, references, list(val), text_fields=settings.text_fields, allow_overlap=settings.allow_overlap
    )
    opened, trained = loading.find(folder, tokenizer or name, end_of_text=end_of_text)
    built = stage.tokenize(
        folder, check_name(name), inputs, opened, trained, settings, Progress(), jobs=jobs, open_engine=open_engine
    )
    return store.open_store(built.artifact)
