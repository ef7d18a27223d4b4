"""`python -m leuda_deploy infer ...`: the runtime without the training half."""

import signal

if __name__ == "__main__":
    # while all is loaded, Ctrl-C ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from leuda_deploy.cli import main

    main()
