"""An engine: Transformers' own, which counts its batches."""

from dataclasses import replace

from safedraft.engines.transformers.load import load as load_transformers


class Counting:
    """Forwards everything to another engine and counts the batches that it is asked for."""

    name = "counting"

    def __init__(self, engine):
        self._engine = engine
        self.capabilities = engine.capabilities
        self.batches = 0

    def batch(self):
        """A batch of the other engine's."""
        self.batches += 1
        return self._engine.batch()

    def session(self, which):
        """A session of the other engine's."""
        return self._engine.session(which)

    def forward(self, passes):
        """The other engine's passes."""
        return self._engine.forward(passes)

    def close(self):
        """Close the other engine."""
        self._engine.close()


def load(spec, config, report, *, dtype="auto", device="auto"):
    """Load the pair with Transformers; options that are not named here are refused."""
    loaded = load_transformers(spec, config, report, dtype=dtype, device=device)
    return replace(loaded, engine=Counting(loaded.engine))
