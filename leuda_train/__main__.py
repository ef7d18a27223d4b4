"""`leuda ...`, or `python -m leuda_train ...`: the command, from its first moment on."""

import signal


def main() -> None:
    """The `leuda` command. While all of it is loaded, Ctrl-C ends it without a traceback.

    One of the processes of --gpus, or of torchrun, ends with its launcher, from this moment on.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from leuda_deploy.machine.stop import end_with_launcher

    end_with_launcher()
    from leuda_train.cli import main as run

    run()


if __name__ == "__main__":
    main()
