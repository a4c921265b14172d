"""The train stage: publish the run of a plan, training it only if it does not stand already."""

from __future__ import annotations

from pathlib import Path

from model.run import Plan, Report, identify
from pipeline import artifact
from pipeline.artifact import Built, Content


def train(root: Path, planned: Plan, *, device: str, resume: bool, report: Report) -> Built:
    """Train, and publish the run. An unfinished run of the same plan goes on from its last checkpoint if `resume`."""

    def write(draft: Path) -> Content:
        from model.train import fit  # torch takes two seconds to import: not for a run that stands already

        with artifact.lease(planned.tokens):
            result = fit(draft, planned, device=device, resume=resume, report=report)
        return Content({"steps": result.steps, "tokens": result.tokens, "parameters": result.parameters})

    return artifact.build(root, identify(planned), write, keep_draft=True)
