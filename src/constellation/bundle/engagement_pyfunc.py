"""An engagement bundle as an MLflow model: events (or attributes) in, a row per customer and action out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.bundle.engagement import EngagementBundle
from constellation.bundle.engagement_answers import COLUMNS
from constellation.bundle.pyfunc import REQUIREMENTS, completed, trusted_by, write_model
from constellation.schema import CATEGORICAL, CUSTOMER_ID, EVENT_TIME, LIST, REQUIRED

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModel

FURTHER = ("scipy>=1.13", "threadpoolctl>=3")
"""Beside the requirements of every bundle: Thompson sampling, and reward models that keep to one thread."""


def save_engagement_pyfunc(
    bundle: EngagementBundle, bundle_folder: Path, to: Path, *, trusted: Sequence[str] = ()
) -> None:
    """Write an MLflow model around the bundle in ``bundle_folder`` to the new folder ``to``.

    Its input are events, or attributes where the bundle reads no events; parameters ``cutoff, policy, system, seed``.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, DataType

    kinds: dict[str, Any] = {CATEGORICAL: DataType.string, LIST: Array(DataType.string)}
    columns: list[Any] = [ColSpec(AnyType(), CUSTOMER_ID)]
    if bundle.kinds:
        time = DataType.datetime if bundle.schema.clock == "time" else DataType.long
        columns.append(ColSpec(time, EVENT_TIME))
        for name, kind in bundle.kinds.items():
            columns.append(ColSpec(kinds.get(kind, DataType.double), name, required=name in REQUIRED))
    else:
        for name in bundle.recipe.attributes:
            kind_of = DataType.double if name in bundle.recipe.numeric else DataType.string
            columns.append(ColSpec(kind_of, name, required=False))
    of_answer = {"decision_time": DataType.datetime, "action": DataType.string, "eligible": DataType.boolean}
    outputs: list[Any] = [ColSpec(AnyType(), CUSTOMER_ID)]
    for name in COLUMNS:
        if name not in (CUSTOMER_ID, "chosen"):
            outputs.append(ColSpec(of_answer.get(name, DataType.double), name))
    outputs.append(ColSpec(DataType.boolean, "chosen", required=False))
    texts = [ParamSpec(name, "string", "") for name in ("cutoff", "policy", "system")]
    params = ParamSchema([*texts, ParamSpec("seed", "long", 0)])
    signature = ModelSignature(inputs=Schema(columns), outputs=Schema(outputs), params=params)
    write_model(__name__, signature, bundle_folder, to, requirements=[*REQUIREMENTS, *FURTHER], trusted=trusted)


def python_model() -> PythonModel:
    """The wrapper that MLflow calls."""
    from mlflow.pyfunc import PythonModel

    class EngagementModel(PythonModel):
        # No type hints: MLflow would read them as a signature of its own.
        def load_context(self, context):  # type: ignore[no-untyped-def]
            self.bundle = EngagementBundle.load(context.artifacts["bundle"], trusted=trusted_by(context))

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            params = params or {}
            model_input = completed(model_input, self.bundle.kinds or self.bundle.recipe.attributes)
            tables = {"events": model_input} if self.bundle.kinds else {"attributes": model_input}
            answers = self.bundle.predict(
                **tables,
                cutoff=params.get("cutoff") or None,
                policy=params.get("policy") or None,
                system=params.get("system") or None,
                seed=int(params.get("seed", 0)),
            )
            return answers.frame().to_pandas()

    return EngagementModel()
