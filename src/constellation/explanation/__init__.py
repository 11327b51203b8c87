"""What moved a prediction: integrated gradients of one answer over the fields of every event and of the cutoff."""

from constellation.explanation.explaining import Explanation, Options, explain

__all__ = ["Explanation", "Options", "explain"]
