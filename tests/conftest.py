"""Fixtures of all tests: the folder of real texts, an empty store, the command line. And the slow tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.object_store import ENVIRONMENT, MotoServer

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("INKSTONE_SHARED") or ROOT.parent / "shared").resolve()

# OpenMP threads that spin while waiting make two trainings on two cores many times slower. PASSIVE lets them sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tests train on the CPU, in this process and in those that it starts, unless they are marked `cuda`. torch reads the
# variable at its first use of a GPU.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Slow tests, which `make test-fast` leaves out: complete chains, trainings, kill loops. A pattern matches a file, or a
# file with the name of a test. tests/test_house.py checks that every folder keeps fast tests.
SLOW = (
    "tests/*_faults.py",
    "tests/model/commands/test_tunings.py",
    "tests/model/exchange/test_convert.py",
    "tests/model/exchange/test_export.py::test_transformers_*",
    "tests/model/exchange/test_import_model.py",
    "tests/model/generation/test_session.py",
    "tests/model/serving/test_chat_template.py",
    "tests/model/serving/test_page.py",
    "tests/model/training/test_checkpointer.py::test_training_that_was_killed*",
    "tests/model/training/test_continue.py",
    "tests/model/training/test_distributed.py",
    "tests/model/training/test_early_end.py",
    "tests/model/training/test_estimate.py",
    "tests/model/training/test_graphs.py",
    "tests/model/training/test_learner.py::test_compiled_step_gives_the_same_gradients",
    "tests/model/training/test_loss_curve.py",
    "tests/model/training/test_memory.py::test_planned*",
    "tests/model/training/test_nodes.py",
    "tests/model/training/test_progress.py",
    "tests/model/training/test_resume.py",
    "tests/model/training/test_signals.py",
    "tests/model/training/test_train_from.py",
    "tests/model/training/test_trainer.py",
    "tests/model/training/tuning/test_objective.py::test_packed_answers_compile_to_one_graph_with_the_same_gradients",
    "tests/model/training/tuning/test_tuning.py",
    "tests/pipeline/clean/rules/test_rules.py::test_rule*_reference*",
    "tests/pipeline/clean/rules/test_verse.py::test_verse_of_shuihu",
    "tests/pipeline/clean/test_cleaner.py",
    "tests/pipeline/clean/duplicates/test_fingerprints.py::test_exact_duplicates_among_the_poems*",
    "tests/pipeline/clean/duplicates/test_near.py::test_poems_lose_the_same_documents*",
    "tests/pipeline/clean/test_filters.py",
    "tests/pipeline/clean/test_planted.py",
    "tests/pipeline/clean/test_profiles.py",
    "tests/pipeline/clean/test_sentences.py::test_split_equals_the_slow_reference",
    "tests/pipeline/clean/test_sentences.py::test_split_of_real_books_equals_the_slow_reference",
    "tests/pipeline/clean/test_stage.py::test_long_blank_beginning_of_a_text_is_cleaned",
    "tests/pipeline/export/test_export.py::test_*read*back*",
    "tests/pipeline/export/test_export.py::test_bytes_do_not_depend_on_segments",
    "tests/pipeline/export/test_export.py::test_same_tokens_give_same_bytes",
    "tests/pipeline/export/test_export.py::test_train_llm_from_scratch_embeds_blocks_of_the_dataset",
    "tests/pipeline/maintenance/test_retention.py",
    "tests/pipeline/maintenance/test_status.py",
    "tests/pipeline/readers/test_compression.py",
    "tests/pipeline/readers/test_encoding.py",
    "tests/pipeline/refresh/test_refresh.py",
    "tests/pipeline/report/test_page.py::test_keyboard*",
    "tests/pipeline/report/test_page.py::test_page_*in_a_browser*",
    "tests/pipeline/report/test_run.py",
    "tests/pipeline/runtime/test_spread.py::test_*killed*",
    "tests/pipeline/runtime/test_spread.py::test_*losses*",
    "tests/pipeline/runtime/test_workers.py",
    "tests/pipeline/sources/test_http.py",
    "tests/pipeline/sources/test_hub.py::test_refresh_of_a_dataset*",
    "tests/pipeline/sources/test_transfer.py",
    "tests/pipeline/store/test_remote.py::test_seaweedfs*",
    "tests/pipeline/tokenizers/test_detokenizer.py",
    "tests/pipeline/tokenizers/test_huggingface.py",
    "tests/pipeline/tokenizers/test_ranks.py::test_download_for_later*",
    "tests/pipeline/tokenizers/test_ranks.py::test_vocabulary_gives_the_official_file",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_*tiktoken*",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_decode_inverts_encode",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_every_id_that_a_model_can_sample_decodes",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_gigatoken*",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_real_texts_cut_at_boundaries_keep_their_ids",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_text_cut_at_any_boundary_keeps_its_ids",
    "tests/pipeline/tokenizers/test_tokenizers.py::test_untrusted_model*",
    "tests/pipeline/tokenizers/test_training.py",
    "tests/pipeline/tokenizers/test_training.py::test_*tiktoken*",
    "tests/pipeline/tokenizers/test_training.py::test_byte_level_ids*",
    "tests/pipeline/tokens/test_chunks.py::test_line_of_300_mb_is_cut_in_less_than_700_mib",
    "tests/pipeline/tokens/test_chunks.py::test_parts_concatenate_to_the_text_for_any_json_escapes",
    "tests/pipeline/tokens/test_conversations.py::test_ids_and_mask_of_every_form*",
    "tests/pipeline/tokens/test_reuse.py",
    "tests/pipeline/tokens/test_stage.py",
    "tests/pipeline/tokens/test_worker.py",
    "tests/pipeline/tokens/test_writer.py",
    "tests/pipeline/tokens/units/test_units.py::test_killed_workers_change_no_byte",
    "tests/pipeline/tokens/units/test_units.py::test_processes_of_their_own*",
    "tests/test_bad_values.py",
    "tests/test_chain.py",
    "tests/test_cli.py::test_bad_input_prints_one_line_with_hint_and_publishes_nothing",
    "tests/test_cli.py::test_closed_pipe_is_not_an_error",
    "tests/test_cli.py::test_damaged_artifact_is_reported_and_not_used",
    "tests/test_cli.py::test_every_stage_prints_one_json_object_with_its_fields",
    "tests/test_digests.py::test_reference_texts_still_give_the_golden_bytes",
    "tests/test_docs.py::test_the_python_examples_run_in_order",
    "tests/test_folders.py",
    "tests/test_foreign_tokenizer.py",
    "tests/test_readme.py::test_the_offline_commands_run_as_written",
    "tests/test_start.py",
    "tests/test_waits.py::test_commands_explain_what_takes_long",
    "tests/test_wheel.py",
)

if SHARED.is_dir():  # it holds tiktoken's rank files, so that no test needs the network
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken")


def pytest_configure(config: pytest.Config) -> None:
    """Give random examples no time limit, and draw 20 per test, not 100, in `make test-fast`."""
    count = 20 if config.option.markexpr == "not slow" else 100
    hypothesis.settings.register_profile("inkstone", deadline=None, max_examples=count)
    hypothesis.settings.load_profile("inkstone")
    if config.option.markexpr == "cuda":
        if GPUS is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = GPUS


@pytest.hookimpl(tryfirst=True)  # before pytest applies -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that SLOW names, and those of the model that need a trained run."""
    for item in items:
        needs_run = item.nodeid.startswith("tests/model/") and "trained" in getattr(item, "fixturenames", ())
        if needs_run or is_slow(item.nodeid):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("cuda") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device: NOT tested here; `make test-gpu` on a GPU"))


@functools.cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def is_slow(test: str) -> bool:
    """Return True if SLOW names a test, given as `tests/file.py` or `tests/file.py::name[parameters]`."""
    file, _, name = test.partition("::")
    name = name.partition("[")[0]
    return any(fnmatch(file, pattern) or fnmatch(f"{file}::{name}", pattern) for pattern in SLOW)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real texts and rank files. Tests that need it are skipped if it is missing."""
    if not SHARED.is_dir():
        assert not os.environ.get("INKSTONE_REQUIRE_SHARED"), f"the shared texts are required, but {SHARED} is missing"
        pytest.skip(f"no folder of shared texts at {SHARED} (INKSTONE_SHARED)")
    return SHARED


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the path of an artifacts folder that does not exist yet."""
    return tmp_path / "artifacts"


Inkstone = Callable[..., dict[str, Any]]


@pytest.fixture
def inkstone(root: Path) -> Inkstone:
    """Run a command in a process of its own with --json, and return the JSON object that it prints.

    `stderr` and `code` are added to the object. The command must exit with `code`, by default 0.
    """

    def run(*arguments: object, code: int = 0, cwd: Path = ROOT) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "--json", *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
        assert process.returncode == code, f"{arguments} exited {process.returncode}, not {code}:\n{process.stderr}"
        output = json.loads(process.stdout)
        assert isinstance(output, dict)
        return {**output, "stderr": process.stderr, "code": process.returncode}

    return run


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """Run moto's S3 server, with a bucket called `bucket`. Tests that need it are skipped without moto[server]."""
    server = MotoServer()
    yield server
    server.close()


@pytest.fixture
def s3(moto: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return the URL of an empty prefix in moto's bucket; its address and its credentials are in the environment."""
    pytest.importorskip("obstore")
    moto.busy = 0
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": moto.url}.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}"
