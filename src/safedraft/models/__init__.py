"""The store of models: the registry, fetching and verifying, conversion, compatibility checks."""
