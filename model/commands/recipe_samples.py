"""Samples of a recipe's run, which `refresh`, `start` and `demo` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.commands.console import Settings

if TYPE_CHECKING:
    from model.generation.sampling import SampleOptions
    from pipeline.refresh.recipe import Recipe, SampleSection
    from pipeline.store.artifact import Artifact

_SAMPLE_FIELDS = ("max_tokens", "temperature", "top_k", "min_p", "seed")  # sampling options of a recipe


def continuations(settings: Settings, recipe: Recipe, run: Artifact, device: str) -> list[dict[str, Any]]:
    """Continue the recipe's prompts with the run's best checkpoint, or let a tuned run answer them."""
    from model.commands import sample
    from model.generation.chat import Chat
    from model.generation.session import Session

    with settings.progress.wait(f"loading {run.ref}"):
        session = Session(run, "best", device, "fp32", settings.progress.note)
        session.load()
    if recipe.train.parent:
        chats = [(text, Chat(session, sample_options(recipe.sample))) for text in recipe.sample.prompts]
        answers = [(text, chat.ask(text, lambda piece: None, settings.progress.stop)) for text, chat in chats]
        return [{"prompt": text, **answer._asdict()} for text, answer in answers]
    prompts = [session.encode_prompt(text) for text in recipe.sample.prompts]
    options = sample_options(recipe.sample)
    return [sample.as_fields(result) for result in session.sample(prompts, options, settings.progress.stop)]


def sample_options(section: SampleSection) -> SampleOptions:
    """Return the sampling options of a recipe; those that it leaves out are as in `sample`."""
    from model.generation.sampling import SampleOptions

    values = {name: getattr(section, name) for name in _SAMPLE_FIELDS}
    return SampleOptions(**{name: value for name, value in values.items() if value is not None})


def sample_lines(samples: list[dict[str, Any]]) -> list[str]:
    """Format continuations, with a bar after the prompt, or answers on lines of their own; without blank lines."""
    texts = []
    for sample in samples:
        bar = "\n→ " if "dropped" in sample else "|"
        texts.append(f"  {sample['prompt']}{bar}{sample['text']}".split("\n"))
    return [line for first, *rest in texts for line in (first, *(f"    {line}" for line in rest if line.strip()))]
