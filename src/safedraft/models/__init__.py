"""The store of models: registry, fetching and verifying, conversion, compatibility checks."""
