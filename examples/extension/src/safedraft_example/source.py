"""A prompt source: questions from a kitchen."""

from safedraft.prompts.sources import Record
from safedraft.prompts.split import Shares


class Kitchen:
    """Harmless questions; all of them are for reports."""

    about = "questions from a kitchen"
    shares = Shares(train=0, calibration=0)

    def load(self, report):
        """The records of the source."""
        for dish in ("soup", "bread", "rice"):
            yield Record(f"How do I cook {dish}?", "kitchen")


kitchen = Kitchen()
