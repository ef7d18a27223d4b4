"""`python -m leuda_deploy infer ...`: the runtime without the training half."""

from leuda_deploy.cli import main

main()
