"""`python -m leuda_train ...`: the same as the `leuda` command."""

from leuda_train.cli import main

main()
