"""The model card of an engagement bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation import __version__
from constellation.bundle.card import markdown_table
from constellation.bundle.engagement_answers import COLUMNS
from constellation.schema import CUSTOMER_ID, EVENT_TIME

if TYPE_CHECKING:
    from constellation.bundle.engagement import EngagementBundle

_EVALUATED = (
    "- What acts here was refitted on all decisions of the run. What `evaluate` judges are the folds' models, each "
    "fitted on a part of them and asked about customers it had not seen: close to these, not the same.\n"
)


def engagement_card(bundle: EngagementBundle) -> str:
    """Markdown: what it answers and reads, what it was trained on, and where it ends."""
    facts = bundle.trained_on
    reads = [
        [f"`{CUSTOMER_ID}`", "key"],
        [f"`{EVENT_TIME}`", "time"],
        *([f"`{n}`", k] for n, k in bundle.kinds.items()),
    ]
    recipe = bundle.recipe
    attributes = [[f"`{name}`", "number" if name in recipe.numeric else "text"] for name in recipe.attributes]
    described = bundle.rule.action_features or {}
    actions = [
        [f"`{name}`", f"{cost:.4g}", ", ".join(f"{key} {value}" for key, value in described.get(name, {}).items())]
        for name, cost in zip(bundle.actions, bundle.cost_A, strict=True)
    ]
    sections = [
        f"# Next-best engagement: {facts.get('data', 'a data set')}",
        "Says what each action would bring each customer, how sure that is and, with a policy, which to take and with "
        f"which propensity to log it. Written by constellation {__version__}; weights are safetensors, the rest JSON.",
        "## Use",
        "```python\nfrom constellation.bundle import EngagementBundle\n\n"
        'bundle = EngagementBundle.load("path/to/this/folder")\n'
        'answers = bundle.predict(events, cutoff="2024-12-31", policy="greedy")\n'
        "answers.frame()   # one row per customer and action\nanswers.chosen()  # one row per customer\n```",
        "Or: `constellation score bundle=path/to/this/folder events=events.parquet policy=greedy`, and "
        "`constellation recommend bundle=path/to/this/folder events=events.parquet` to plan within limits.",
        "## Columns of the answer",
        markdown_table(["column", "unit", "meaning"], [[f"`{name}`", *words] for name, words in COLUMNS.items()]),
        "## Actions",
        markdown_table(["action", "mean cost", "description"], actions),
        "## What it reads",
        markdown_table(["column of the events", "kind"], reads) if bundle.kinds else "No events.",
    ]
    if attributes:
        sections.append(markdown_table(["attribute", "kind"], attributes))
    sections += ["## Trained on", markdown_table(["fact", ""], [[name, str(value)] for name, value in facts.items()])]
    models = "refitted on the whole log" if bundle.refitted else "{num} folds together"
    systems = ", ".join(f"{name} ({models.format(num=len(parts))})" for name, parts in bundle.systems.items())
    names = ", ".join(bundle.policies) or "none of those that learn from a log"
    sections += [
        "## Limits",
        f"- Systems: {systems}; the first answers unless another is named. Policies kept: {names}.\n"
        "- Rewards are those within "
        f"{bundle.rule.reward_days:g} days. Whether acting so is better than what was done is for `constellation "
        "evaluate policy=...` to say, on the decisions of the run.\n"
        f"{_EVALUATED if bundle.refitted else ''}"
        "- A customer that the run knows is answered by models that saw her too"
        f"{'' if bundle.refitted else ', unless her fold is named'}.\n"
        "- An action that was never tried is told by its description alone: `lower` knows what that leaves open, as "
        "far as leaving out one known action at a time shows it.",
    ]
    return "\n\n".join(sections) + "\n"
