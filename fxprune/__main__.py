"""What `python -m fxprune` runs: the command line."""

from fxprune.cli import main

main()
