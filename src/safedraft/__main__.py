"""``python -m safedraft`` is the command line."""

from safedraft.cli import main

main()
