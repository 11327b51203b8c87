"""The trained model that a training begins from (``train init=...``): found, checked, recorded, and told about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.bundle import Bundle
    from constellation.journeys.splits import Splits
    from constellation.tracking import Run
    from constellation.training.initial import Initial, Taken

FILE = "init.json"


@dataclass(frozen=True)
class Beginning:
    """A bundle to begin from. name: of its run, without the path. weights: their checksum."""

    bundle: Bundle
    name: str
    weights: str
    rate: float

    @classmethod
    def of(cls, init: str, run: Run, model_config: Mapping[str, Any], rate: float) -> Beginning:
        """The bundle of ``init``: its folder, or a run's folder, MLflow run id, or ``latest``.

        Raises InputError where there is none, or its encoder is not the one that ``model_config`` describes.
        """
        from constellation.building import targets
        from constellation.bundle import Bundle, locate
        from constellation.bundle.files import WEIGHTS
        from constellation.tracking import Tracking
        from constellation.training.initial import check_encoder

        folder = locate(init, tracking=run.tracking if isinstance(run.tracking, Tracking) else None)
        bundle = Bundle.load(folder, trusted=targets(model_config))  # only code that this run names itself is trusted
        check_encoder(model_config["encoder"], bundle.model_config["encoder"], bundle.model)
        name = folder.parent.name if folder.name == "bundle" else folder.name
        return cls(bundle, name, hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16], float(rate))

    def facts(self) -> dict[str, Any]:
        """For the model card, and for resuming: the run goes on only with the same weights to begin from."""
        told = self.bundle.trained_on
        return {
            "init": self.name,
            "init_data": told.get("data"),
            "init_until": _until(told),
            "init_objectives": ", ".join(self.bundle.model_config["objective"]),
            "init_weights": self.weights,
            "init_rate": self.rate,
        }

    def check_knowledge(self, splits: Splits, say: Callable[[str], None]) -> None:
        """Refuse an initial model that has learned from these data after the test cutoff; say what else it knows.

        Of other data nothing can be checked, for a fingerprint does not tell whether they overlap.
        """
        from constellation.journeys.windows import Windows, parse_cutoff

        told = self.bundle.trained_on
        say(
            f"begins from {self.name}: {', '.join(self.bundle.model_config['objective'])} on {told.get('data')}"
            f"{'' if _until(told) is None else f', trained up to {_until(told)}'}"
        )
        if told.get("fingerprint") != splits.store.manifest.content:
            return
        dated = _until(told) is not None
        if not isinstance(splits.windows, Windows) or not dated:
            if isinstance(splits.windows, Windows) == dated and not told.get("refit", True):
                return
            say("  it may know the validation events of these data: validation scores here are then not out of sample")
            return
        until = parse_cutoff(str(_until(told)), self.bundle.schema.timezone)
        if until > splits.test_cutoff:
            raise InputError(
                f"init was trained on these data up to {_until(told)}, after the test cutoff "
                f"{splits.windows.test_cutoff}: what is to be predicted was learned already. Move the cutoffs of one "
                "of the two."
            )
        if until > splits.val_cutoff:
            say(
                f"  it knows what follows the validation cutoff {splits.windows.val_cutoff}, so validation scores and "
                "the number of epochs are not out of sample; the test is. Pretrain with training.refit=false to keep "
                "both honest."
            )
        if told.get("num_customers") not in (None, len(splits.train_journeys)):
            say("  it was trained on other customers than those of this split: test_new may not be new to it")

    def initial(self, run: Run, say: Callable[[str], None]) -> Initial:
        """For one seed; what each phase takes is said, and that of the last phase kept in ``init.json``."""
        from constellation.training.initial import Initial

        heard: list[dict[str, Any]] = []

        def tell(taken: Taken) -> None:
            known = taken.to_json()
            if not heard:
                say(f"init: {taken.share:.1%} of the weights of this model are taken")
                for line in taken.lines():
                    say(line)
            elif known != heard[-1]:
                say(f"init: the refit takes {taken.share:.1%} of its weights, for its vocabulary is larger")
            heard.append(known)
            (run.folder / FILE).write_text(json.dumps(self.facts() | known, indent=1), encoding="utf-8")
            run.log_metrics({"init/share_taken": taken.share})

        return Initial(self.bundle.model, self.bundle.vocabulary, self.rate, tell)


def _until(told: Mapping[str, Any]) -> Any:
    """The last date that a bundle learned from, None where it was split by last events."""
    return told.get("test_cutoff") if told.get("refit", True) else told.get("val_cutoff")
