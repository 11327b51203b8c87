"""A bundle as an MLflow model: for the registry, ``mlflow models serve`` and Spark. MLflow is imported only here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.bundle.bundle import Bundle
from constellation.bundle.example import example_events
from constellation.schema import CUSTOMER_ID, EVENT_TIME, REQUIRED

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PythonModel

REQUIREMENTS = ("torch>=2.11", "numpy>=2", "pandas>=2.2", "polars>=2", "pyarrow>=18", "safetensors>=0.5")
"""What predicting needs; the code of this package itself travels with the model."""

# MLflow runs this file when it loads the model. The usual alternative is a pickle.
_MODEL_FILE = '''"""The MLflow model of a bundle."""

from mlflow.models import set_model

from {module} import python_model

set_model(python_model())
'''


def save_pyfunc(bundle: Bundle, bundle_folder: Path, to: Path, *, trusted: Sequence[str] = ()) -> None:
    """Write an MLflow model around the bundle in ``bundle_folder`` to the new folder ``to``."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    events = example_events(bundle.vocabulary, bundle.schema, num_customers=8)
    if bundle.schema.clock == "time":
        events[EVENT_TIME] = events[EVENT_TIME].dt.as_unit("ns")
    events = events.astype({CUSTOMER_ID: str})
    found = infer_signature(events, bundle.predict(events, None))
    known = [ColSpec(column.type, column.name, required=column.name in REQUIRED) for column in found.inputs]
    inputs: list[Any] = [_any_id(column) for column in known]
    outputs: list[Any] = [_any_id(column) for column in found.outputs]
    params = ParamSchema([ParamSpec("cutoff", "string", ""), ParamSpec("top_products", "long", 10)])
    signature = ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=params)
    write_model(__name__, signature, bundle_folder, to, requirements=REQUIREMENTS, trusted=trusted)


def write_model(
    module: str,
    signature: ModelSignature,
    bundle_folder: Path,
    to: Path,
    *,
    requirements: Sequence[str],
    trusted: Sequence[str],
) -> None:
    """An MLflow model whose code is ``python_model()`` of ``module``, around the bundle in ``bundle_folder``."""
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "model.py"
        script.write_text(_MODEL_FILE.format(module=module), encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=str(to),
            python_model=str(script),
            artifacts={"bundle": str(bundle_folder)},
            code_paths=[str(Path(__file__).parents[1])],
            signature=signature,
            pip_requirements=list(requirements),
            model_config={"trusted": list(trusted)},
        )


def python_model() -> PythonModel:
    """The wrapper that MLflow calls: events in, predictions out; parameters ``cutoff`` and ``top_products``."""
    from mlflow.pyfunc import PythonModel

    class BundleModel(PythonModel):
        # No type hints: MLflow would read them as a signature of its own.
        def load_context(self, context):  # type: ignore[no-untyped-def]
            self.bundle = Bundle.load(context.artifacts["bundle"], trusted=trusted_by(context))

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            params = params or {}
            model_input = completed(model_input, self.bundle.vocabulary.kinds)
            cutoff, top_products = params.get("cutoff") or None, int(params.get("top_products", 10))
            return self.bundle.predict(model_input, cutoff, top_products=top_products)

    return BundleModel()


def trusted_by(context: Any) -> Sequence[str]:
    """The modules that whoever wrote the model trusts to build parts of it."""
    return tuple((context.model_config or {}).get("trusted", []))


def completed(model_input: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Columns that a caller may leave out of a request are missing everywhere, not an error."""
    return model_input.assign(**{name: None for name in names if name not in model_input})


def _any_id(column: Any) -> Any:
    """Ids may be numbers or texts; MLflow lets only a column of any type be either."""
    from mlflow.types import ColSpec
    from mlflow.types.schema import AnyType

    return ColSpec(AnyType(), column.name, required=True) if column.name == CUSTOMER_ID else column
