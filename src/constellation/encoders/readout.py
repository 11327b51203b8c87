"""What a cutoff reads: the state after the last event it may see, the silence since, the calendar, the aggregates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from constellation.encoders.events import EMBEDDING_STD, NUM_WEEKDAYS
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.batch import JourneyBatch
    from constellation.journeys.vocabulary import Vocabulary

SILENCE_SCALES_DAYS = (3.0, 7.0, 14.0, 30.0, 91.0, 365.0)


class Readout(nn.Module):
    """``states_ND, batch -> readout_QD``: each part through its own linear map, summed, then a residual MLP.

    The sum passes the MLP by, so a head sees the aggregates linearly as well as bent: the model starts from what a
    regression on aggregates knows.

    Customers without an event have a sum of their own: the start state, a learned vector, and the attributes, also
    through a map of their own. They are few among the questions, and parameters that nobody else pulls at learn as fast
    from few (an optimizer like Adam scales each by its own gradients). Through the parts of all others their answers
    stayed near those of active customers for tens of epochs: at a twentieth of the questions, twice the purchases.

    use_growing: also read tenure and whole-history sums. Where all customers start together these grow with the
    calendar, and at a later cutoff they stand for dates that training has not seen; rates and windows say the same and
    do not drift.
    use_state, use_aggregates, use_elapsed, use_calendar, use_attributes: leave a part out, to learn what it is worth.
    Asked with ``None`` for the states it leaves them out, with the same weights (``ValuePooled``);
    ``reads_beside_state`` says whether something that tells customers apart is left then: a weekday does not.
    hidden: width of the MLP's inner layer over ``width``.
    """

    silence_scales: Tensor
    kept_F: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        state_width: int,
        *,
        width: int,
        layers: int = 2,
        hidden: int = 2,
        use_state: bool = True,
        use_aggregates: bool = True,
        use_growing: bool = False,
        use_elapsed: bool = True,
        use_calendar: bool = True,
        use_attributes: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width = width
        names = vocabulary.aggregates.names
        growing = [name == "tenure_days" or name.endswith("_ever") for name in names]
        # Without windows (only the order is known) the whole history is all there is.
        kept = [
            row
            for row, grows in enumerate(growing)
            if use_growing or not grows or not vocabulary.aggregates.windows_days
        ]
        num_aggregates = len(kept)
        self.attributes = vocabulary.attributes_categorical if use_attributes else []
        self.attributes_numeric = vocabulary.attributes_numeric if use_attributes else []
        self.use_state, self.use_calendar, self.use_elapsed = use_state, use_calendar, use_elapsed
        self.use_aggregates = use_aggregates and num_aggregates > 0
        beside = self.use_aggregates or use_elapsed or use_calendar or use_attributes
        has_attributes = bool(self.attributes or self.attributes_numeric)
        self.reads_beside_state = use_state and (self.use_aggregates or use_elapsed or has_attributes)
        if not (use_state or beside):
            raise InputError("The readout has nothing to read: leave at least one of its use_... flags true.")
        if use_state:
            self.start_state_D = nn.Parameter(torch.randn(state_width) * EMBEDDING_STD)
            self.from_state = nn.Sequential(nn.Dropout(dropout), nn.Linear(state_width, width, bias=False))
        if self.use_aggregates:
            self.register_buffer("kept_F", torch.tensor(kept), persistent=False)
            self.from_aggregates = nn.Linear(num_aggregates, width, bias=False)
        if use_elapsed:
            self.register_buffer("silence_scales", torch.tensor(SILENCE_SCALES_DAYS), persistent=False)
            self.from_elapsed = nn.Linear(1 + len(SILENCE_SCALES_DAYS), width, bias=False)
        if use_calendar:
            self.from_weekday = _small_embedding(NUM_WEEKDAYS, width)
        sizes = [vocabulary.num_codes(f"attributes.{name}") for name in self.attributes]
        self.from_attributes = nn.ModuleList(_small_embedding(size, width) for size in sizes)
        if self.attributes_numeric:
            self.from_numbers = nn.Linear(len(self.attributes_numeric), width, bias=False)
        self.bias_D = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, hidden * width),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden * width, width),
            )
            for _ in range(layers)
        )
        self.newcomer_D = nn.Parameter(torch.zeros(width))
        self.newcomer_attributes = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.newcomer_attributes.weight)

    def forward(self, states_ND: Tensor | None, batch: JourneyBatch) -> Tensor:
        """Readout [Q, width]; without states, of all that is read beside them."""
        readout_QD = self.bias_D.expand(len(batch.cutoff_Q), -1)
        newcomer_QD = self.newcomer_D.expand(len(batch.cutoff_Q), -1)
        if self.use_state and states_ND is not None:
            # The start state stands in row 0, so last_event -1 finds it and a batch without events still works.
            rows = torch.cat([self.start_state_D.to(states_ND.dtype).unsqueeze(0), states_ND])
            state_QD = self.from_state(rows[batch.last_event_Q + 1])
            readout_QD, newcomer_QD = readout_QD + state_QD, newcomer_QD + state_QD
        if self.use_aggregates:
            readout_QD = readout_QD + self.from_aggregates(batch.aggregates_QF[:, self.kept_F])
        if self.use_elapsed:
            readout_QD = readout_QD + self.from_elapsed(self._silence(batch))
        if self.use_calendar:
            readout_QD = readout_QD + self.from_weekday(batch.weekday_Q)
        attributes_QD = torch.zeros_like(newcomer_QD)
        for name, table in zip(self.attributes, self.from_attributes, strict=True):
            attributes_QD = attributes_QD + table(batch.attributes[name])[batch.query_journey_Q]
        if self.attributes_numeric:
            numbers = torch.stack([batch.attributes_numeric[name] for name in self.attributes_numeric], dim=1)
            attributes_QD = attributes_QD + self.from_numbers(numbers)[batch.query_journey_Q]
        readout_QD = readout_QD + attributes_QD
        newcomer_QD = newcomer_QD + attributes_QD + self.newcomer_attributes(attributes_QD)
        readout_QD = torch.where((batch.last_event_Q < 0).unsqueeze(1), newcomer_QD.to(readout_QD.dtype), readout_QD)
        for layer in self.layers:
            readout_QD = readout_QD + layer(readout_QD)
        return readout_QD

    def _silence(self, batch: JourneyBatch) -> Tensor:
        """Log days since the last event and decays over several scales, [Q, features]; 0 where there is none."""
        seen_Q1 = (batch.last_event_Q >= 0).unsqueeze(1)
        days_Q1 = torch.where(seen_Q1, batch.since_last_days_Q.unsqueeze(1), 0.0).clamp(min=0.0)
        features = torch.cat([days_Q1.log1p() / 3.0, torch.exp(-days_Q1 / self.silence_scales)], dim=1)
        return torch.where(seen_Q1, features, torch.zeros_like(features))


class StateReadout(nn.Module):
    """The state of the last event a query may see, and nothing else; a learned start state where there is none.

    For sequence models as the literature has them, whose answers are read off the last state.
    """

    def __init__(self, vocabulary: Vocabulary, state_width: int) -> None:
        super().__init__()
        self.width = state_width
        self.start_state_D = nn.Parameter(torch.randn(state_width) * EMBEDDING_STD)

    def forward(self, states_ND: Tensor, batch: JourneyBatch) -> Tensor:
        """Readout [Q, state width]."""
        rows = torch.cat([self.start_state_D.to(states_ND.dtype).unsqueeze(0), states_ND])
        return rows[batch.last_event_Q + 1]


def _small_embedding(size: int, width: int) -> nn.Embedding:
    table = nn.Embedding(size, width)
    nn.init.normal_(table.weight, std=EMBEDDING_STD)
    return table
