"""the `leuda` command, deployment half. May import everything in leuda_deploy.

commands.py parses and delegates, show.py prints what was found, log.py shows what is logged.
"""

from leuda_deploy.cli.commands import JsonOption, app, main, run

__all__ = ["JsonOption", "app", "main", "run"]
