"""The command line with byte-level BPE and with a tokenizer.json from elsewhere: train, sample, export."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Inkstone
from tests.pipeline.tokenizers.shapes import qwen
from tests.pipeline.tokenizers.test_tokenizers import BOOK, SAMPLE

TINY = ("--preset", "qwen-8m", "--set", "layers=1", "--set", "width=64", "--set", "eval_bytes=700", "--steps", 2)


def test_byte_level_bpe_trains_and_samples(inkstone: Inkstone) -> None:
    inkstone("clean", SAMPLE / "yanshan.txt", "--unit", "paragraph", "--name", "book")
    trained = inkstone("train-tokenizer", "book", "--kind", "bbpe", "--vocab-size", 1000)
    assert trained["counts"]["vocab_size"] == 1000
    tokens = inkstone("tokenize", "book")
    assert (tokens["tokenizer"], tokens["encoder"]) == ("book", "tokenizers")
    inkstone("train", "--tokens", "book", "--name", "book", *TINY)
    (sample,) = inkstone("sample", "book", "--prompt", "话说", "--max-tokens", 5)["samples"]
    assert sample["text"].startswith("话说") or sample["prompt"] == "话说"


def test_tokenizer_from_elsewhere_trains_samples_and_is_exported_unchanged(
    inkstone: Inkstone, root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(qwen([BOOK]), encoding="utf-8")
    inkstone("clean", SAMPLE / "yanshan.txt", "--unit", "paragraph", "--name", "book")
    error = inkstone("tokenize", "book", "--tokenizer", folder, "--end-of-text", "<|stop|>", code=78)
    assert "<|endoftext|>, <|im_start|>, <|im_end|>" in error["hint"]
    inkstone("tokenize", "book", "--tokenizer", folder, "--end-of-text", "<|im_end|>")
    run = inkstone("train", "--tokens", "book", "--name", "book", *TINY)
    assert inkstone("sample", "book", "--prompt", "话说", "--max-tokens", 5)["samples"]
    exported = Path(inkstone("export", "model", "book", "--to", "hf", "--verify")["path"])
    for path in (exported / "tokenizer.json", Path(run["path"]) / "huggingface.json"):
        assert path.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert "<|im_end|>" in (exported / "tokenizer_config.json").read_text()
