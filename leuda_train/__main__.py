"""`leuda ...`, or `python -m leuda_train ...`: the command, from its first moment on."""

import signal


def main() -> None:
    """The `leuda` command. While all of it is loaded, Ctrl-C ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from leuda_train.cli import main as run

    run()


if __name__ == "__main__":
    main()
