"""An engagement bundle as an MLflow model: events (or attributes) in, a row per customer and action out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.bundle.engagement import EngagementBundle
from constellation.bundle.engagement_answers import COLUMNS
from constellation.bundle.pyfunc import REQUIREMENTS
from constellation.schema import CATEGORICAL, CUSTOMER_ID, EVENT_TIME, LIST, REQUIRED

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModel

FURTHER = ("scipy>=1.13", "threadpoolctl>=3")
"""Beside the requirements of every bundle: Thompson sampling, and reward models that keep to one thread."""

_MODEL_FILE = '''"""The MLflow model of an engagement bundle."""

from mlflow.models import set_model

from constellation.bundle.engagement_pyfunc import python_model

set_model(python_model())
'''


def save_engagement_pyfunc(
    bundle: EngagementBundle, bundle_folder: Path, to: Path, *, trusted: Sequence[str] = ()
) -> None:
    """Write an MLflow model around the bundle in ``bundle_folder`` to the new folder ``to``.

    Its input are events, or attributes where the bundle reads no events; parameters ``cutoff, policy, system, seed``.
    """
    import mlflow.pyfunc
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
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "model.py"
        script.write_text(_MODEL_FILE, encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=str(to),
            python_model=str(script),
            artifacts={"bundle": str(bundle_folder)},
            code_paths=[str(Path(__file__).parents[1])],
            signature=ModelSignature(inputs=Schema(columns), outputs=Schema(outputs), params=params),
            pip_requirements=[*REQUIREMENTS, *FURTHER],
            model_config={"trusted": list(trusted)},
        )


def python_model() -> PythonModel:
    """The wrapper that MLflow calls."""
    from mlflow.pyfunc import PythonModel

    class EngagementModel(PythonModel):
        # No type hints: MLflow would read them as a signature of its own.
        def load_context(self, context):  # type: ignore[no-untyped-def]
            trusted = (context.model_config or {}).get("trusted", [])
            self.bundle = EngagementBundle.load(context.artifacts["bundle"], trusted=trusted)

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            params = params or {}
            wanted = self.bundle.kinds or self.bundle.recipe.attributes
            for name in wanted:  # columns that a caller may leave out are missing everywhere
                if name not in model_input:
                    model_input = model_input.assign(**{name: None})
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
